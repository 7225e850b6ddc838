# The two commands of the README: `make train` and `make test`. Everything they make lies in this folder.
PYTHON ?= python3
WORKSPACE ?= workspace
export PIP_CACHE_DIR ?= $(CURDIR)/.cache/pip
export PIP_DISABLE_PIP_VERSION_CHECK = 1

UCLLM = .tool/bin/ucllm

.PHONY: train test setup lint catalogue clean

train: setup
	$(UCLLM) train all --workspace $(WORKSPACE)

setup: .tool/.installed
	$(UCLLM) setup --profile cpu --workspace $(WORKSPACE) --yes

test: setup .dev/.installed
	.dev/bin/python -m pytest -n auto

lint: setup .dev/.installed
	.dev/bin/ruff check .
	.dev/bin/ruff format --check .
	.dev/bin/mypy

# Texts a user sees: collect them, keep the translations, compile. Fails where a translation is missing.
catalogue: .dev/.installed
	.dev/bin/pybabel -q extract -k N_ --no-location --sort-output --omit-header -o .cache/ucllm.pot bootstrap pipeline
	.dev/bin/pybabel -q update --no-wrap --omit-header -N -D ucllm -l ja -i .cache/ucllm.pot -d pipeline/locale
	.dev/bin/pybabel -q compile --statistics -D ucllm -d pipeline/locale

.tool/.installed: pyproject.toml locks/tool.lock
	$(PYTHON) -m venv .tool
	.tool/bin/python -m pip install --quiet --require-hashes -r locks/tool.lock
	.tool/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

# The tests import stage code, so their environment also sees the packages of the workspace's.
.dev/.installed: pyproject.toml locks/dev.lock
	$(PYTHON) -m venv .dev
	.dev/bin/python -m pip install --quiet --require-hashes -r locks/dev.lock
	.dev/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	.dev/bin/python -c "import pathlib, sysconfig; \
	  here = pathlib.Path(sysconfig.get_path('purelib')); \
	  there = pathlib.Path('$(CURDIR)/$(WORKSPACE)/.venv', *here.parts[-3:]); \
	  (here / 'workspace.pth').write_text(f'{there}\n')"
	touch $@

clean:
	rm -rf .tool .dev .cache

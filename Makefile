# The two commands of the README: `make train` and `make test`. Everything they make lies in this folder.
PYTHON ?= python3
WORKSPACE ?= workspace
export PIP_CACHE_DIR ?= $(CURDIR)/.cache/pip
export PIP_DISABLE_PIP_VERSION_CHECK = 1
# The locks are exact: a site's constraints have nothing to add, and could only contradict them.
export PIP_CONSTRAINT = /dev/null

UCLLM = .tool/bin/ucllm

.PHONY: train test setup lint catalogue clean

train: setup
	$(UCLLM) train all --workspace $(WORKSPACE)

setup: .tool/.installed
	$(UCLLM) setup --profile cpu --workspace $(WORKSPACE) --yes

test: setup .dev/.installed
	mkdir -p .cache
	HF_HOME=$(CURDIR)/.cache/huggingface .dev/bin/python -m pytest -n $$(( $$(nproc) + 1 )) --basetemp .cache/pytest

lint: setup .dev/.installed
	.dev/bin/ruff check .
	.dev/bin/ruff format --check .
	.dev/bin/mypy

# Texts a user sees: collect them, keep the translations, compile. Fails where a translation is missing, and names it.
PO = pipeline/locale/ja/LC_MESSAGES/ucllm.po

catalogue: .dev/.installed
	mkdir -p .cache
	.dev/bin/pybabel -q extract --no-location --sort-output --omit-header -o .cache/ucllm.pot bootstrap pipeline
	.dev/bin/pybabel -q update --no-wrap --no-fuzzy-matching --ignore-obsolete --ignore-pot-creation-date \
	  -D ucllm -l ja -i .cache/ucllm.pot -d pipeline/locale
	.dev/bin/python -c "import sys; from babel.messages.pofile import read_po; \
	  catalogue = read_po(open('$(PO)', 'rb'), 'ja'); \
	  missing = [m for m in catalogue if m.fuzzy or not all(m.string if m.pluralizable else [m.string])]; \
	  sys.exit('\n'.join(['Not translated in $(PO):', *(repr(m.id) for m in missing)]) if missing else 0)"
	.dev/bin/pybabel -q compile -D ucllm -l ja -d pipeline/locale

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

# Thin: each target installs what is missing (xtask/setup.sh), then runs a task of xtask/.
# ARCH=x86_64|aarch64|all and KERNEL=FILE choose what `agent` and `image` build.

SETUP := sh xtask/setup.sh
ARCH ?= all
KERNEL ?=

.DEFAULT_GOAL := help
.PHONY: help demo test image agent fixtures bench dist lint clean

help:
	@echo 'make demo      registry, push, VM, pull, run: the main job, with its times'
	@echo 'make test      every check and test'
	@echo 'make dist      static host programs, agents and VM images in target/dist'
	@echo 'make image     VM image (ARCH=x86_64|aarch64|all, KERNEL=FILE)'
	@echo 'make agent     guest agent (ARCH=…)'
	@echo 'make fixtures  the images that tests push'
	@echo 'make bench     measurements for docs/benchmarks.md'
	@echo 'make lint      formatting, clippy, licences'
	@echo 'make clean     target/ (the cache outside the tree stays)'

demo:
	@$(SETUP) demo

test:
	@$(SETUP) ci

lint:
	@$(SETUP) ci --only lint

agent:
	@$(SETUP) agent --arch $(ARCH)

image:
	@$(SETUP) image --arch $(ARCH) $(if $(KERNEL),--kernel '$(KERNEL)')

fixtures:
	@$(SETUP) fixtures

bench:
	@$(SETUP) bench

dist:
	@$(SETUP) dist

clean:
	rm -rf target

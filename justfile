# Every command that a developer types. `just` lists them.

python := "python"

# list the commands
default:
    @just --list

# install everything for development into the current environment
setup:
    {{python}} -m pip install --quiet 'torch==2.13.0'
    {{python}} -m pip install --quiet --editable '.[build,dev]'
    just types

# let type checkers find `retouch` in this checkout
types:
    mkdir -p .typings && ln -sfn .. .typings/retouch

# lint, format and type checks
check: types
    ruff check .
    ruff format --check .
    pyright

# the tests
test *arguments:
    {{python}} -m pytest {{arguments}}

# rewrite what is generated: JSON Schemas
generate:
    retouch schema --into specs

# measure what the docs quote; interop needs --optimum-python as well
bench *arguments:
    {{python}} -m benchmarks.efficacy {{arguments}}

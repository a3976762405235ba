#!/usr/bin/env bash
# Make the virtual environment $1 ready: torch, a3d_det2 with its development tools, and Detectron2.
# Exit status 3: everything but Detectron2, which could not be had. With ENGINE=torchvision it is not looked for.
#
# Detectron2 comes from $DETECTRON2 (a wheel, a checkout, a URL: any pip requirement but a bare name), or else a wheel
# that pip's find-links offers, or else its repository at the commit in requirements-detectron2.txt. The bare name is
# never asked of an index: it is free there for anyone to take.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1
python="$venv/bin/python"
requirement=${DETECTRON2:-}

if [[ -e $requirement ]]; then
    requirement=$(realpath "$requirement")  # pip reads "folder" as a name and a full path as a path
elif [[ -n $requirement && ! $requirement =~ ^([A-Za-z0-9._-]+\ *@\ *)?[a-z+]+:// ]]; then
    echo "DETECTRON2=$requirement: expected a wheel or checkout that exists, or a URL. By its name alone Detectron2" \
        "would come from a public index, where it is not; nothing was installed." >&2
    exit 2
fi

if [[ ! -x $python ]]; then
    echo "Making a virtual environment in $venv"
    "${PYTHON3:-python3}" -m venv "$venv"
fi
if [[ ! -e $venv/.installed || setup.py -nt $venv/.installed || pyproject.toml -nt $venv/.installed ||
    a3d_det2/kernels/csrc/mixing.cpp -nt $venv/.installed ]]; then
    echo "Installing torch, torchvision and a3d_det2 (the first time, this downloads several GB)"
    # setuptools 81 dropped pkg_resources, which Detectron2's model zoo imports.
    "$python" -m pip install --quiet torch torchvision "setuptools<81" wheel ninja
    "$python" -m pip install --quiet --no-build-isolation -e ".[dev]"
    touch "$venv/.installed"
fi

[[ ${ENGINE:-} != torchvision ]] || exit 0
have_detectron2() { "$python" -c "from a3d_det2.optional import detectron2_problem as p; exit(p() is not None)"; }
pip_install() { "$python" -m pip install --quiet --no-build-isolation "$@"; }

if have_detectron2 && [[ -z $requirement || $requirement == "$(cat "$venv/.detectron2" 2>/dev/null)" ]]; then
    exit 0
fi
wheels=$(mktemp -d)
trap 'rm -rf "$wheels"' EXIT
if [[ -n $requirement ]]; then
    echo "Installing Detectron2 from $requirement"
    pip_install "$requirement"
    echo "$requirement" > "$venv/.detectron2"
elif "$python" -m pip download --quiet --no-index --no-deps --only-binary :all: --dest "$wheels" detectron2 2> /dev/null; then
    echo "Installing Detectron2 from pip's find-links: $(ls "$wheels")"
    pip_install "$wheels"/detectron2-*
else
    echo "Installing Detectron2 from its repository (this compiles it; log: $venv/detectron2.log)"
    GIT_TERMINAL_PROMPT=0 pip_install -r requirements-detectron2.txt > "$venv/detectron2.log" 2>&1 || exit 3
fi
have_detectron2 || exit 3

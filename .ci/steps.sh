# shellcheck shell=bash
# What .ci/run (the gate) and .ci/check (everything else) share: system packages, steps with their minutes.
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
export PYTHON=python3.11 # its locked packages are the oldest supported ones
# shellcheck disable=SC2034 # the scripts that read this file use it
NEWEST=(PYTHON=python3.13 VENV=.venv-3.13)
NUSCENES=${PERCEPTION_NUSCENES:-../shared/data/nuscenes}
CPP_PACKAGES=(g++ cmake ninja-build pkg-config libonnxruntime-dev nlohmann-json3-dev libssl-dev zlib1g-dev
  libfastcdr-dev rosidl-generator-c-cpp libopencv-core-dev libopencv-imgproc-dev libconsole-bridge-dev liborocos-kdl-dev)
mkdir -p runs
minutes=()

install_packages() { # LOG PACKAGE...
  dpkg -s "${@:2}" >/dev/null 2>&1 ||
    { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y "${@:2}"; } >"$1" 2>&1
}

system_packages() {
  install_packages runs/chromium.log chromium ||
    echo "apt-get could not install chromium (runs/chromium.log): the report is not tested in a browser."
  install_packages runs/contact-packages.log promtool locales valgrind ||
    echo "apt-get could not install promtool, locales and valgrind (runs/contact-packages.log): tests of them may be skipped."
  install_packages runs/cpp-packages.log "${CPP_PACKAGES[@]}" || {
    echo "apt-get could not install what the C++ runtime is built with (runs/cpp-packages.log)."
    exit 1
  }
  for python in python3.11 python3.13; do
    "$python" -c "import ensurepip" 2>/dev/null || install_packages "runs/$python.log" "$python-venv" || {
      echo "$python makes no virtual environments, and apt-get could not install $python-venv (runs/$python.log)."
      exit 1
    }
  done
}

timed() { # NAME COMMAND...: keeps the minutes of the command for the table
  local name=$1 start=$SECONDS status=0
  shift
  echo "== $name: $* (after $((SECONDS / 60)) minutes)"
  "$@" || status=$?
  minutes+=("$(printf '%5d.%d  %s' $(((SECONDS - start) / 60)) $(((SECONDS - start) % 60 / 6)) "$name")")
  return $status
}

recorded_data_used() { # LOG: tests may skip recorded data, and headers beside them, only where they are missing
  if [ -d "$NUSCENES" ] && grep -E "not found at .*\(set PERCEPTION_" "$1"; then
    echo "The recorded data are there, but tests skipped them ($1)."
    return 1
  fi
}

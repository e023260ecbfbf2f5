#!/usr/bin/env bash
# Installs what the end-to-end tests, the demo and the benchmarks run: Debian packages, crictl, critest, a kubelet, runc,
# youki, cnitool, the reference CNI plugins and cargo-deny.
# Safe to repeat: what is there already costs only a look. Needs root for the packages.
#   setup.sh [packages|guest|plugins|cni]
#     packages   what the demo needs: no peers are built
#     guest      what makes and boots the virtual machine of `make test-guest`
#     plugins    the reference CNI plugins and cnitool, which `make bench` compares with; part of the whole
#     cni        what `make cni-conformance` runs beside them: podman, and the tests of plugins and of podman's library
set -euo pipefail
cd "$(dirname "$0")/../.."

bin_dir=$PWD/.cache/bin
runc_version=v1.4.3
youki_version=0.7.0
youki_features=seccomp,systemd,v1,v2
deny_version=0.20.2
packages=(
  busybox-static ca-certificates containerd containernetworking-plugins crun docker-registry g++ gcc iproute2
  iptables iputils-ping libc6-dev libseccomp-dev make nftables pkg-config procps protobuf-compiler runc skopeo util-linux
)
guest_packages=(checkpolicy e2fsprogs mmdebstrap qemu-system-x86 util-linux)
cni_packages=(conmon podman)
cni_dir=$PWD/.cache/cni

step() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

# What comes from the network may fail once.
twice() { "$@" || { step "once more: $1 ${2-}"; sleep 10; "$@"; }; }

missing_packages() {
  local name
  for name in "$@"; do
    [ "$(dpkg-query -W -f='${db:Status-Status}' "$name" 2>/dev/null)" = installed ] || printf '%s\n' "$name"
  done
}

install_packages() {
  local missing
  mapfile -t missing < <(missing_packages "$@")
  if [ ${#missing[@]} -eq 0 ]; then
    step "Debian packages: present"
    return
  fi
  [ "$(id -u)" -eq 0 ] || fail "needs root to install: ${missing[*]}"
  step "Debian packages: installing ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  # A machine that has just started may be updating itself.
  local get=(apt-get -qq -o DPkg::Lock::Timeout=300)
  local install=("${get[@]}" install -y --no-install-recommends -o Dpkg::Use-Pty=0)
  if ! "${install[@]}" "${missing[@]}" >.cache/apt.log 2>&1; then
    "${get[@]}" update >.cache/apt.log 2>&1 && "${install[@]}" "${missing[@]}" >>.cache/apt.log 2>&1 ||
      { tail -20 .cache/apt.log >&2; fail "apt-get failed"; }
  fi
}

# The stamp is the digest of the module files, so that a new version rebuilds the tools.
build_go_tools() {
  local stamp=$bin_dir/.go-tools wanted
  wanted=$(cat e2e/go/go.mod e2e/go/go.sum | sha256sum)
  if [ -x "$bin_dir/crictl" ] && [ -x "$bin_dir/critest" ] && [ -x "$bin_dir/ginkgo" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    step "crictl and critest: present"
    return
  fi
  command -v go >/dev/null || fail "needs Go 1.26 or newer in PATH to build crictl and critest"
  step "crictl and critest: building (about a minute)"
  (
    cd e2e/go
    twice go build -o "$bin_dir/crictl" sigs.k8s.io/cri-tools/cmd/crictl
    # What critest starts to run specs side by side.
    twice go build -o "$bin_dir/ginkgo" github.com/onsi/ginkgo/v2/ginkgo
    twice go test -c -o "$bin_dir/critest" sigs.k8s.io/cri-tools/cmd/critest
  )
  printf '%s\n' "$wanted" >"$stamp"
}

# A module of its own, since the kubelet's needs are not crictl's. Symbols would double its size.
build_kubelet() {
  local stamp=$bin_dir/.kubelet wanted
  wanted=$(cat e2e/go/kubelet/{main.go,go.mod,go.sum} | sha256sum)
  if [ -x "$bin_dir/kubelet" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    step "kubelet: present"
    return
  fi
  command -v go >/dev/null || fail "needs Go 1.26 or newer in PATH to build the kubelet"
  step "kubelet: building (some minutes)"
  (cd e2e/go/kubelet && twice go build -trimpath -ldflags='-s -w' -o "$bin_dir/kubelet" .)
  printf '%s\n' "$wanted" >"$stamp"
}

# cnitool and the reference plugins; their newest 1.9, whatever Debian has.
build_plugins() {
  local stamp=$cni_dir/.plugins wanted
  wanted=$(cat e2e/go/cni/{go.mod,go.sum} | sha256sum)
  if [ -x "$cni_dir/bin/cnitool" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    step "cnitool and reference plugins: present"
    return
  fi
  command -v go >/dev/null || fail "needs Go 1.26 or newer in PATH to build cnitool and the reference plugins"
  step "cnitool and reference plugins: building (half a minute)"
  mkdir -p "$cni_dir/bin"
  (cd e2e/go/cni && twice go build -trimpath -ldflags='-s -w' -o "$cni_dir/bin/" tool)
  printf '%s\n' "$wanted" >"$stamp"
}

# The tests that come with the plugins and with podman's network library, as programs. A test finds its files below
# the directory that it runs in.
build_cni_tests() {
  local stamp=$cni_dir/.tests wanted name source
  local plugins=github.com/containernetworking/plugins
  wanted=$(cat e2e/go/{cni,libnetwork}/{go.mod,go.sum} | sha256sum)
  if [ -x "$cni_dir/tests/libnetwork.test" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    step "tests of plugins and of podman's library: present"
    return
  fi
  step "tests of plugins and of podman's library: building (a minute)"
  mkdir -p "$cni_dir/tests"
  (
    cd e2e/go/cni
    twice go test -c -o "$cni_dir/tests/integration.test" $plugins/integration
    for name in firewall portmap; do
      twice go test -c -o "$cni_dir/tests/$name.test" "$plugins/plugins/meta/$name"
    done
    source=$(go list -m -f '{{.Dir}}' $plugins)
    cp -r --no-preserve=mode "$source/integration/testdata" "$cni_dir/tests/"
  )
  (
    cd e2e/go/libnetwork
    twice go test -c -o "$cni_dir/tests/libnetwork.test" github.com/containers/common/libnetwork/cni
    source=$(go list -m -f '{{.Dir}}' github.com/containers/common)
    cp -r --no-preserve=mode "$source/libnetwork/cni/testfiles" "$cni_dir/tests/"
  )
  printf '%s\n' "$wanted" >"$stamp"
}

# Debian's is too old for user namespaces with mounts that were mapped for it.
build_runc() {
  local stamp=$bin_dir/.runc
  if [ -x "$bin_dir/runc" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$runc_version" ]; then
    step "runc $runc_version: present"
    return
  fi
  step "runc $runc_version: building (about a minute)"
  GOBIN=$bin_dir twice go install -trimpath -ldflags "-s -w" -tags seccomp "github.com/opencontainers/runc@$runc_version"
  printf '%s\n' "$runc_version" >"$stamp"
}

# Its default features know no cgroup v1. Without `systemd` it knows no scopes.
build_youki() {
  local stamp=$bin_dir/.youki wanted="$youki_version $youki_features"
  if [ -x "$bin_dir/youki" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    step "youki $youki_version: present"
    return
  fi
  command -v cargo >/dev/null || fail "needs a Rust toolchain in PATH to build youki"
  step "youki $youki_version: building (some minutes)"
  CARGO_TARGET_DIR=$PWD/.cache/youki-build twice cargo install youki --version "$youki_version" --locked --quiet \
    --features "$youki_features" --force --root "$PWD/.cache"
  rm -rf .cache/youki-build
  printf '%s\n' "$wanted" >"$stamp"
}

# Not optimised: it runs for seconds, and so it is built in two minutes.
build_cargo_deny() {
  local stamp=$bin_dir/.cargo-deny
  if [ -x "$bin_dir/cargo-deny" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$deny_version" ]; then
    step "cargo-deny $deny_version: present"
    return
  fi
  command -v cargo >/dev/null || fail "needs a Rust toolchain in PATH to build cargo-deny"
  step "cargo-deny $deny_version: building (about two minutes)"
  CARGO_TARGET_DIR=$PWD/.cache/deny-build CARGO_PROFILE_DEV_DEBUG=0 CARGO_PROFILE_DEV_STRIP=true \
    twice cargo install cargo-deny --version "$deny_version" --locked --quiet --debug --force --root "$PWD/.cache"
  rm -rf .cache/deny-build
  printf '%s\n' "$deny_version" >"$stamp"
}

mkdir -p "$bin_dir"
case ${1:-all} in
all)
  install_packages "${packages[@]}"
  build_go_tools
  build_kubelet
  build_runc
  build_youki
  build_plugins
  build_cargo_deny
  ;;
packages) install_packages "${packages[@]}" ;;
guest) install_packages "${guest_packages[@]}" ;;
plugins) build_plugins ;;
cni)
  install_packages "${cni_packages[@]}"
  build_plugins
  build_cni_tests
  ;;
*) fail "unknown argument $1" ;;
esac
step "done"

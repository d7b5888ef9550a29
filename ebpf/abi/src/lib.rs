//! ebpf/abi.

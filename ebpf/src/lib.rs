//! ebpf.

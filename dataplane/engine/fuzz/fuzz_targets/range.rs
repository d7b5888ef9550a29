//! The grammar of `Range`: what is satisfiable lies within the representation, without overlap.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u64, &[u8])| {
    let (size, value) = input;
    freshet_engine::fuzzing::ranges(value, size);
    freshet_engine::fuzzing::ranges(value, 10_000);
});

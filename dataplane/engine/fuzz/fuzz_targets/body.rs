//! Chunked bodies: read past whole or byte by byte, they end at the same place.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| freshet_engine::fuzzing::chunks(body));

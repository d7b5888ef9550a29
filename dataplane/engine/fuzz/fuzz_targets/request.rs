//! Streams of requests: nothing panics, a cut changes nothing, and what is accepted keeps its promises.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u16, &[u8])| {
    let (cut, stream) = input;
    freshet_engine::fuzzing::requests(stream, usize::from(cut));
});

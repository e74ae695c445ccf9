//! Any bytes as a record of the kernel programs.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _good_or_not = tracer_user::event::decode::record(bytes);
});

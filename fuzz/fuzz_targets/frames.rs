//! Any stream of bytes into the decoder of the session protocol.
#![no_main]

libfuzzer_sys::fuzz_target!(|stream: &[u8]| {
    let _good_or_not = tracer_user::session::decode_stream(stream);
});

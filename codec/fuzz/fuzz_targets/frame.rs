//! Any bytes as a frame of another process.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| catga_codec_fuzz::entry::frame(input));

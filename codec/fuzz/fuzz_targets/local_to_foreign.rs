//! A good frame of ours, damaged on its way to another process.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| catga_codec_fuzz::entry::local_to_foreign(input));

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| catga_fuzz::lane(data));

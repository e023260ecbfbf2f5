//! Runs [`cri_server_fuzz::spdy`] on what libFuzzer comes up with.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cri_server_fuzz::spdy(bytes));

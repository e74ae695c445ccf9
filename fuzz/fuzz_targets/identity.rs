//! Any text as an identity file, and names looked up in what it holds.
#![no_main]

use tracer_user::identity::Directory;

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(directory) = Directory::parse(text, "fuzz") {
        // Any name: what follows the last line break, if nothing better.
        let name = text.rsplit('\n').next().unwrap_or_default();
        let _known_or_not = directory.resolve(name, "default");
    }
});

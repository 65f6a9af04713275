//! Has the crate's own code, and no dependency's, use loom.

fn main() {
    println!("cargo::rustc-cfg=epilogue_model");
    println!("cargo::rerun-if-changed=build.rs");
}

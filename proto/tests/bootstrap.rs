//! The generated code is committed; this test generates it again and compares.
//!
//! `UPDATE_EXPECT=1 cargo test -p proto --test bootstrap` writes what it generated instead.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]
use std::fs;
use std::path::Path;

const CONTRACTS: [(&str, &str); 4] = [
    ("berth/v1/admin.proto", "berth.v1.rs"),
    ("cri/v1/api.proto", "runtime.v1.rs"),
    ("csi/v1/csi.proto", "csi.v1.rs"),
    ("pluginregistration/v1/api.proto", "pluginregistration.rs"),
];

fn generate(contract: &str, out: &Path) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let descriptors = protox::compile([contract], [root]).expect("the contract compiles");
    tonic_prost_build::configure()
        .btree_map(".")
        .out_dir(out)
        .compile_fds(descriptors)
        .expect("code is generated");
}

#[test]
fn generated_code_is_up_to_date() {
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/gen");
    for (contract, file) in CONTRACTS {
        let out = std::env::temp_dir().join(format!("berth-proto-{}-{file}", std::process::id()));
        fs::create_dir_all(&out).unwrap();
        generate(contract, &out);
        let fresh = fs::read_to_string(out.join(file)).unwrap();
        fs::remove_dir_all(&out).unwrap();
        if std::env::var_os("UPDATE_EXPECT").is_some() {
            fs::write(committed.join(file), &fresh).unwrap();
        }
        let stale = fs::read_to_string(committed.join(file)).unwrap_or_default();
        assert!(stale == fresh, "src/gen/{file} is not what {contract} generates");
    }
}

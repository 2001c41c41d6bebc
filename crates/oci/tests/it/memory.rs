//! Memory use does not depend on image size.

use std::fs;
use std::io::Write as _;
use std::process::Command;

use raworc_oci::{Bounds, Image, Layer, Layout, export, import};

use crate::daemon::{Daemon, Settings};
use crate::registries::{noise, registry};
use crate::support::{PLAIN, able, run};

/// Peak memory in KiB of a process that performs every operation with an image: less than its layer's size.
const RESIDENT_KIB_MAX: u64 = 48 << 10;
/// Size of the layer in MiB; can be set in the environment.
const LAYER_MIB: u64 = 64;

/// Started by the next test as a process whose memory is measured.
#[test]
fn does_all_there_is_to_do() {
    let Ok(address) = std::env::var("RAWORC_OCI_TEST_PUSH_TO") else { return };
    let mebibytes: u64 = std::env::var("RAWORC_OCI_TEST_MIB").unwrap().parse().unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    fs::create_dir(root.join("layer")).unwrap();
    let mut file = fs::File::create(root.join("layer/noise")).unwrap();
    (0..mebibytes).for_each(|seed| file.write_all(&noise(1 << 20, seed)).unwrap());
    let step = |what: &str| eprintln!("{what}: {} KiB", resident());
    step("before");
    let layout = Layout::open(&root.join("layout")).unwrap();
    let (layer, packed) = Layer::pack(&root.join("layer"), &PLAIN, &layout).unwrap();
    assert!(packed.bytes > mebibytes << 20 && layer.blob.size > mebibytes << 20);
    step("packed");
    let manifest = Image { layers: vec![layer], ..Image::default() }.store(&layout).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let remote = registry(address, "large", None);
    runtime.block_on(remote.push(&layout, &manifest.digest, &|_: &str, _, _| {})).unwrap();
    step("pushed");
    let other = Layout::open(&root.join("other")).unwrap();
    runtime.block_on(remote.pull(&other, &|_: &str, _, _| {})).unwrap();
    step("pulled");
    export(&other, &manifest, None, fs::File::create(root.join("archive")).unwrap(), &mut |_, _, _| {}).unwrap();
    let third = Layout::open(&root.join("third")).unwrap();
    let bounds = Bounds { bytes: mebibytes << 21, entries: 100 };
    import(fs::File::open(root.join("archive")).unwrap(), &third, &bounds, &mut |_| {}).unwrap();
    step("out and in");
    fs::create_dir(root.join("unpacked")).unwrap();
    let image = Image::load(&third, &manifest.digest).unwrap();
    image.layers[0].unpack(&third, &root.join("unpacked"), &PLAIN, &bounds, &mut |_| {}).unwrap();
    step("unpacked");
    assert_eq!(fs::metadata(root.join("unpacked/noise")).unwrap().len(), mebibytes << 20);
    assert!(resident() < RESIDENT_KIB_MAX, "{} KiB", resident());
}

/// Peak memory of this process in KiB.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn memory_does_not_grow_with_images() {
    if !able(&["docker-registry"]) {
        return;
    }
    let daemon = Daemon::start(Settings::default());
    let mebibytes = std::env::var("RAWORC_OCI_TEST_MIB").unwrap_or_else(|_| LAYER_MIB.to_string());
    let output = run(Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "memory::does_all_there_is_to_do", "--nocapture", "--test-threads=1"])
        .env("RAWORC_OCI_TEST_PUSH_TO", daemon.address.to_string())
        .env("RAWORC_OCI_TEST_MIB", mebibytes));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("unpacked"), "it did all: {told}");
    eprintln!("{told}");
}

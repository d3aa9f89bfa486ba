//! The same pull and run with Docker's engine, in a Debian that boots in QEMU: what people do
//! without `vdkr`.
//!
//! The engine makes no networks of its own here, which spares it the work of its bridge.

use std::path::Path;
use std::time::Duration;

use vdkr_tests::board::Board;
use vdkr_tests::fixtures::bench_layout;
use vdkr_tests::registry::Registry;

use crate::table::Samples;
use crate::{settle, timed};

/// Boots; each takes a minute or more.
const ROUNDS: usize = 3;
/// What a pull there may take.
const UNPACKING: Duration = Duration::from_mins(15);

/// Prints the tables.
pub(crate) fn run() {
    for (arch, board, machine) in [
        ("x86_64", "q35", "qemux86-64"),
        ("aarch64", "virt", "qemuarm64"),
    ] {
        println!(
            "### The same with Docker's engine in a Debian VM ({board}), {arch} under emulation (TCG)\n"
        );
        table(arch, &bench_layout(machine, "debian-large-latest-oci"));
    }
}

fn table(arch: &str, image: &Path) {
    let registry = Registry::start();
    let push = ["push", "--tag", "latest", image.to_str().expect("UTF-8")];
    registry.run(push).expect(0);
    let host = format!("10.0.2.2:{}", registry.port());
    let daemon = format!(
        "{{\"insecure-registries\": [\"{host}\"], \"iptables\": false, \"ip6tables\": false, \
         \"bridge\": \"none\"}}\n"
    );
    // The kernel has AppArmor, the system none of its tools.
    let run = format!(
        "docker run --rm --network host --security-opt apparmor=unconfined \
         {host}/yocto/debian-large true"
    );
    let mut samples: [Samples; 3] = Default::default();
    for _ in 0..ROUNDS {
        settle();
        let file = ("etc/docker/daemon.json", 0o644, daemon.as_bytes());
        let file = (file.0.to_owned(), file.1, file.2.to_vec());
        let (boot, mut board) = timed(|| {
            let mut board = Board::boot_docker(arch, vec![file]);
            board.sh("until docker info >/dev/null 2>&1; do sleep 0.1; done");
            board
        });
        let (first, ()) = timed(|| perform(&mut board, &run));
        let (again, ()) = timed(|| perform(&mut board, &run));
        for (samples, time) in samples.iter_mut().zip([boot, first, again]) {
            samples.add_time(time);
        }
    }
    println!("| what | s |");
    println!("|---|---|");
    let names = [
        "boot until the engine answers",
        "pull and first run",
        "run, image there",
    ];
    for (name, samples) in names.iter().zip(&samples) {
        println!("| {name} | {} |", samples.show(2));
    }
    println!();
}

/// Runs a command of the engine, or fails with the words of both.
fn perform(board: &mut Board, command: &str) {
    let (status, text) = board.try_sh_within(command, UNPACKING);
    if status != 0 {
        let log = "journalctl --boot --no-pager --unit docker --unit containerd | tail -n 60";
        let (_, log) = board.try_sh(log);
        panic!("{command}: status {status}\n{text}\n{log}");
    }
}

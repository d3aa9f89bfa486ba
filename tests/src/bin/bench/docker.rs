//! The same pull and run with Docker's engine, in a Debian that boots in QEMU: what people do
//! without `vdkr`.
//!
//! The engine makes no networks of its own here, which spares it the work of its bridge.

use std::time::Duration;

use vdkr_tests::board::Board;
use vdkr_tests::registry::Registry;

use crate::timed;

/// What one boot took, step by step.
#[derive(Debug)]
pub(crate) struct Times {
    /// From QEMU's start until the engine answers.
    pub(crate) boot: Duration,
    /// Pull and first run.
    pub(crate) first_run: Duration,
    /// One more run.
    pub(crate) run: Duration,
}

/// Boots, pulls `image` from the registry, and runs it twice.
pub(crate) fn run(registry: &Registry, image: &str) -> Times {
    let host = format!("10.0.2.2:{}", registry.port());
    let daemon = format!(
        "{{\"insecure-registries\": [\"{host}\"], \"iptables\": false, \"ip6tables\": false, \
         \"bridge\": \"none\"}}\n"
    );
    let file = (
        "etc/docker/daemon.json".to_owned(),
        0o644,
        daemon.into_bytes(),
    );
    let (boot, mut board) = timed(|| {
        let mut board = Board::boot_from("x86_64-docker", vec![file]);
        board.sh("until docker info >/dev/null 2>&1; do sleep 0.1; done");
        board
    });
    let run = format!("docker run --rm --network host {host}/{image} true");
    let (first_run, _) = timed(|| board.sh(&run));
    let (run, _) = timed(|| board.sh(&run));
    Times {
        boot,
        first_run,
        run,
    }
}

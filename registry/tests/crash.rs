//! Power cuts and dying processes at every point of a push, and every file operation failing once.

mod common;

use std::sync::Arc;

use common::disk::{Disk, Loss};
use common::scenario::{Acknowledged, World, litter};
use common::{Answer, Bench, scratch};
use rustix::io::Errno;
use vdkr_registry::fs::{Fault, FaultPlan, Op};

/// Runs the scenario to its end, and returns its operations and what was acknowledged when.
async fn recorded(world: &World) -> (Vec<Op>, Vec<(usize, Acknowledged)>) {
    let plan = Arc::new(FaultPlan::new());
    let bench = Bench::planned(&plan);
    let mut acknowledged = vec![(0, Acknowledged::default())];
    world
        .live(&bench, &mut |answer: &Answer, known: &Acknowledged| {
            assert!(answer.status.is_success(), "{answer:?}");
            acknowledged.push((plan.count(), known.clone()));
            true
        })
        .await;
    assert_eq!(litter(&bench), 0);
    (plan.ops(), acknowledged)
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_and_nothing_half_written_is_served() {
    let world = World::new();
    let (ops, acknowledged) = recorded(&world).await;
    let losses = [
        Loss::Nothing,
        Loss::Unsynced,
        Loss::Content,
        Loss::Some(0),
        Loss::Some(1),
        Loss::Some(2),
    ];
    let mut points = 0;
    for cut in 0..=ops.len() {
        // A cut after an operation that changes nothing is the cut before it.
        if cut > 0 && !ops[cut - 1].mutates() {
            continue;
        }
        let disk = Disk::after(&ops[..cut]);
        // The last answer given before the cut. Tags that the next request may have moved already are
        // allowed both ways by the scenario.
        let at = acknowledged
            .iter()
            .rposition(|(count, _)| *count <= cut)
            .unwrap();
        let next = acknowledged
            .get(at + 1)
            .map_or(&acknowledged[at].1, |(_, next)| next);
        let known = acknowledged[at].1.before(next);
        for loss in losses {
            let loss = match loss {
                Loss::Some(seed) => Loss::Some(seed * 10_007 + cut as u64),
                other => other,
            };
            let dir = scratch();
            disk.materialise(loss, dir.path());
            let plan = Arc::new(FaultPlan::new());
            let bench = Bench::on(dir, |config| config.fault_plan = Some(plan));
            world.check(&bench, &known).await;
            assert_eq!(litter(&bench), 0, "{loss:?} at {cut}");
            if matches!(loss, Loss::Unsynced | Loss::Some(_)) && cut % 3 == 0 {
                // The push repeated completes, and so does everything after it.
                let mut last = Acknowledged::default();
                world
                    .live(&bench, &mut |answer, known| {
                        assert!(answer.status.is_success(), "{loss:?} at {cut}: {answer:?}");
                        last = known.clone();
                        true
                    })
                    .await;
                world.check(&bench, &last).await;
            }
            points += 1;
        }
    }
    assert!(points > 600, "only {points} points");
}

#[tokio::test]
async fn a_process_that_dies_at_any_operation_leaves_a_legal_state() {
    let world = World::new();
    let (ops, _) = recorded(&world).await;
    for (number, op) in ops.iter().enumerate().filter(|(_, op)| op.mutates()) {
        let plan = Arc::new(FaultPlan::new());
        plan.spoil(number, Fault::Crash);
        let dir = scratch();
        let mut config = vdkr_registry::ServerConfig::new(dir.path());
        config.fault_plan = Some(plan);
        let mut known = Acknowledged::default();
        // Not even its clean-up happens, for the crash lasts.
        if let Ok(registry) = vdkr_registry::Registry::open(config) {
            let bench = Bench {
                dir: Arc::clone(&dir),
                registry,
            };
            let step = &mut |answer: &Answer, now: &Acknowledged| {
                known = now.clone();
                answer.status.is_success()
            };
            world.live(&bench, step).await;
        }
        let fast = Arc::new(FaultPlan::new());
        let bench = Bench::on(dir, |config| config.fault_plan = Some(fast));
        assert_eq!(litter(&bench), 0, "{op:?}");
        world.check(&bench, &known).await;
    }
}

#[tokio::test]
async fn what_another_process_left_unsynced_is_synced_before_a_manifest_counts_on_it() {
    let world = World::new();
    let (ops, _) = recorded(&world).await;
    let syncs = ops
        .iter()
        .enumerate()
        .filter(|(_, op)| matches!(op, Op::SyncDir { .. }));
    let mut skipped = 0;
    for (number, _) in syncs {
        let plan = Arc::new(FaultPlan::new());
        plan.spoil(number, Fault::Error(Errno::IO));
        let dir = scratch();
        let bench = Bench::on(dir.clone(), |config| config.fault_plan = Some(plan.clone()));
        world
            .live(&bench, &mut |answer, _| answer.status.is_success())
            .await;
        // The first process dies, and the next client trusts what the next process shows it.
        let bench = Bench::on(dir, |config| config.fault_plan = Some(plan.clone()));
        let mut known = Acknowledged::default();
        skipped += world.push_what_is_missing(&bench, &mut known).await;
        let dir = scratch();
        Disk::after(&plan.ops()).materialise(Loss::Unsynced, dir.path());
        world.check(&Bench::on(dir, |_| {}), &known).await;
    }
    assert!(skipped > 30, "only {skipped} blobs were found there");
}

#[tokio::test]
async fn every_operation_may_fail_once() {
    let world = World::new();
    let (ops, _) = recorded(&world).await;
    let opening = {
        let plan = Arc::new(FaultPlan::new());
        let _bench = Bench::planned(&plan);
        plan.count()
    };
    let mut failed = 0;
    for (number, op) in ops.iter().enumerate().skip(opening) {
        let mutates = op.mutates();
        let faults: &[Fault] = match op {
            Op::Write { .. } => &[
                Fault::Error(Errno::NOSPC),
                Fault::Error(Errno::IO),
                Fault::Error(Errno::INTR),
                Fault::Short(1),
            ],
            _ if mutates => &[
                Fault::Error(Errno::NOSPC),
                Fault::Error(Errno::IO),
                Fault::Error(Errno::INTR),
            ],
            _ => &[Fault::Error(Errno::MFILE)],
        };
        for fault in faults {
            let plan = Arc::new(FaultPlan::new());
            plan.spoil(number, *fault);
            let bench = Bench::planned(&plan);
            let mut known = Acknowledged::default();
            let mut refused = None;
            world
                .live(&bench, &mut |answer, now| {
                    known = now.clone();
                    if !answer.status.is_success() {
                        refused = Some((answer.status, answer.code()));
                    }
                    answer.status.is_success()
                })
                .await;
            let context = || format!("{fault:?} at {number}: {op:?}");
            match (fault, &refused) {
                (Fault::Error(Errno::NOSPC), Some((status, code))) => {
                    assert_eq!(
                        (status.as_u16(), code.as_str()),
                        (507, "STORAGE_FULL"),
                        "{}",
                        context()
                    );
                }
                (Fault::Error(Errno::INTR) | Fault::Short(_), refused) => {
                    assert_eq!(*refused, None, "{}", context());
                }
                (Fault::Error(Errno::MFILE), Some((status, _))) => {
                    assert!(
                        matches!(status.as_u16(), 404 | 503),
                        "{status} {}",
                        context()
                    );
                }
                (_, Some((status, _))) => {
                    assert!(
                        matches!(status.as_u16(), 404 | 500),
                        "{status} {}",
                        context()
                    );
                }
                (_, None) => {}
            }
            failed += usize::from(refused.is_some());
            // The removal of a temporary file that fails leaves it to the next start.
            if !matches!(op, Op::RemoveFile { .. }) {
                assert_eq!(litter(&bench), 0, "{}", context());
            }
            world.check(&bench, &known).await;
            let fast = Arc::new(FaultPlan::new());
            let bench = Bench::on(Arc::clone(&bench.dir), |config| {
                config.fault_plan = Some(fast);
            });
            world.check(&bench, &known).await;
            if mutates {
                let mut last = Acknowledged::default();
                world
                    .live(&bench, &mut |answer, known| {
                        assert!(answer.status.is_success(), "{answer:?} after {}", context());
                        last = known.clone();
                        true
                    })
                    .await;
                world.check(&bench, &last).await;
            }
        }
    }
    assert!(failed > 100, "only {failed} requests failed");
}

//! A collection that loses power, or of which one operation fails, at every point.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use vdkr_registry::fs::{Fault, FaultPlan};

use crate::APP;
use crate::common::collect::{STRICT, blob, gc, manifest, stored_files};
use crate::common::disk::{Disk, Loss};
use crate::common::{Bench, digest_of, image, index, noise, scratch};

/// A short life with garbage at its end. Returns the number of operations before the collection.
async fn live(bench: &Bench, plan: &FaultPlan) -> usize {
    let (one, two) = (noise(200, 1), noise(300, 2));
    for content in [&b"{}"[..], &one, &two] {
        bench.push_blob(APP, content).await;
    }
    let (first, second) = (image(&[&one]), image(&[&one, &two]));
    for manifest in [&first, &second] {
        let digest = digest_of(manifest).to_string();
        bench.put_manifest(APP, &digest, manifest).await.expect(201);
    }
    bench
        .put_manifest(APP, "both", &index(&[&first, &second]))
        .await
        .expect(201);
    bench.put_manifest(APP, "kept", &first).await.expect(201);
    bench.push_image("gone", "v1", &two).await;
    bench.delete(&manifest("gone", "v1")).await.expect(202);
    bench.delete(&manifest(APP, "both")).await.expect(202);
    plan.count()
}

/// Whatever manifest is served has everything that it needs, and the tag is there.
async fn assert_legal(bench: &Bench, context: &str) {
    let (one, two) = (noise(200, 1), noise(300, 2));
    let (first, second) = (image(&[&one]), image(&[&one, &two]));
    let both = index(&[&first, &second]);
    bench.get(&manifest(APP, "kept")).await.expect(200);
    for repository in [APP, "gone"] {
        if bench
            .get(&manifest(repository, digest_of(&both)))
            .await
            .status
            == 200
        {
            for child in [&first, &second] {
                let answer = bench.get(&manifest(repository, digest_of(child))).await;
                assert_eq!(answer.status, 200, "{context}: an index without its image");
            }
        }
        for (image, layers) in [
            (first.clone(), vec![&one]),
            (second.clone(), vec![&one, &two]),
            (image(&[&two]), vec![&two]),
        ] {
            if bench
                .get(&manifest(repository, digest_of(&image)))
                .await
                .status
                != 200
            {
                continue;
            }
            for layer in layers {
                let answer = bench.get(&blob(repository, layer)).await;
                assert_eq!(answer.status, 200, "{context}: an image without its layer");
                assert!(answer.body == layer.as_slice(), "{context}");
            }
        }
    }
}

#[tokio::test]
async fn a_power_cut_at_any_point_of_a_collection_leaves_a_legal_state() {
    let plan = Arc::new(FaultPlan::new());
    let bench = Bench::planned(&plan);
    let begun = live(&bench, &plan).await;
    let report = gc(&bench, STRICT);
    assert_eq!((report.removed_manifests, report.removed_blobs), (3, 4));
    let ops = plan.ops();
    let mut points = 0;
    for cut in begun..=ops.len() {
        if cut > begun && !ops[cut - 1].mutates() {
            continue;
        }
        let disk = Disk::after(&ops[..cut]);
        for loss in [
            Loss::Nothing,
            Loss::Unsynced,
            Loss::Some(cut as u64),
            Loss::Some(10_007 + cut as u64),
        ] {
            let dir = scratch();
            disk.materialise(loss, dir.path());
            let fast = Arc::new(FaultPlan::new());
            let bench = Bench::on(dir, |config| config.fault_plan = Some(fast));
            let context = format!("{loss:?} at {cut}");
            assert_legal(&bench, &context).await;
            // The next collection finishes the work.
            let report = gc(&bench, STRICT);
            assert_eq!(report.findings, [], "{context}");
            assert_legal(&bench, &context).await;
            assert_eq!(stored_files(&bench), 3, "{context}");
            points += 1;
        }
    }
    assert!(points > 60, "only {points} points");
}

#[tokio::test]
async fn any_operation_of_a_collection_may_fail_or_be_the_last() {
    let (begun, ops) = {
        let plan = Arc::new(FaultPlan::new());
        let bench = Bench::planned(&plan);
        let begun = live(&bench, &plan).await;
        gc(&bench, STRICT);
        (begun, plan.ops())
    };
    let mut told = 0;
    for (number, op) in ops.iter().enumerate().skip(begun) {
        for fault in [Fault::Error(rustix::io::Errno::IO), Fault::Crash] {
            let plan = Arc::new(FaultPlan::new());
            plan.spoil(number, fault);
            let bench = Bench::planned(&plan);
            live(&bench, &plan).await;
            let stop = AtomicBool::new(false);
            let ran = bench.registry.storage().collect_garbage(&STRICT, &stop);
            told += usize::from(ran.map_or(true, |report| !report.findings.is_empty()));
            let fast = Arc::new(FaultPlan::new());
            let bench = Bench::on(Arc::clone(&bench.dir), |config| {
                config.fault_plan = Some(fast);
            });
            let context = format!("{fault:?} at {number}: {op:?}");
            assert_legal(&bench, &context).await;
            assert_eq!(gc(&bench, STRICT).findings, [], "{context}");
            assert_eq!(stored_files(&bench), 3, "{context}");
        }
    }
    assert!(told > 50, "only {told} failures were told");
}

//! What several shares have open together.

use std::sync::Arc;

use super::*;

#[test]
fn all_shares_together_stay_within_their_budget() {
    let budget = Budget::new(8);
    let mut kernels: Vec<_> = (0..3)
        .map(|_| Kernel::with_budget(false, Limits::default(), Arc::clone(&budget)))
        .collect();
    for kernel in &kernels {
        for number in 0..20 {
            fs::write(kernel.path(&format!("f{number}")), format!("{number}")).unwrap();
        }
    }
    let mut nodes = vec![Vec::new(); kernels.len()];
    for number in 0..20 {
        for (kernel, nodes) in kernels.iter_mut().zip(&mut nodes) {
            nodes.push(kernel.lookup(1, &format!("f{number}")).unwrap().node);
            assert!(budget.used() <= 8, "{}", budget.used());
        }
    }
    // What was given back is opened again.
    for (kernel, nodes) in kernels.iter_mut().zip(&nodes) {
        for (number, &node) in nodes.iter().enumerate() {
            let handle = kernel.open(node, 0).unwrap();
            assert_eq!(
                kernel.read(handle, 0, 9).unwrap(),
                number.to_string().as_bytes()
            );
            kernel.server.release(handle);
            assert!(budget.used() <= 8, "{}", budget.used());
        }
    }
    drop(kernels);
    assert_eq!(budget.used(), 0);
}

#[test]
fn open_files_go_first_and_the_last_one_is_refused() {
    let budget = Budget::new(5);
    let new = || Kernel::with_budget(false, Limits::default(), Arc::clone(&budget));
    let (mut one, mut other) = (new(), new());
    for kernel in [&one, &other] {
        fs::write(kernel.path("file"), "x").unwrap();
        fs::create_dir(kernel.path("dir")).unwrap();
    }
    let (file, dir) = (one.walk("file").node, one.walk("dir").node);
    let others = other.walk("file").node;
    // Every place that is only remembered makes room, here and there; that of an open file stays.
    let mut open: Vec<_> = (0..3).map(|_| one.open(file, O_RDWR).unwrap()).collect();
    open.push(word(&one.ask(27, dir, &words(&[0])).unwrap(), 0));
    assert_eq!(budget.used(), 5);
    for kernel in [&mut one, &mut other] {
        let node = kernel.walk("file").node;
        assert_eq!(kernel.open(node, 0), Err(ENFILE));
        assert_eq!(kernel.create(1, "new", 0, 0o644), Err(ENFILE));
        assert!(!kernel.path("new").exists());
    }
    // What is open goes on, and so does what needs nothing for long.
    assert_eq!(one.write(open[0], 0, b"yes", 0), Ok(3));
    assert_eq!(other.attr(others).unwrap().size, 1);
    one.server.release(open.remove(0));
    let handle = other.open(others, 0).unwrap();
    assert_eq!(other.read(handle, 0, 9).unwrap(), b"x");
    assert_eq!(budget.used(), 5);
    // A file that loses its name while it is open is reached by that.
    other.ask(10, 1, &text("file")).unwrap();
    assert_eq!(other.read(handle, 0, 9).unwrap(), b"x");
}

//! A short form of `cargo xtask soak runs`.

#[test]
fn runs_leave_nothing_behind_on_either_side() {
    println!("{}", vdkr_tests::runs::runs(vdkr_tests::runs::FEW));
}

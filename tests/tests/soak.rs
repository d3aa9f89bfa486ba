//! Twenty seconds of the soak; `vdkr-soak` runs it for longer.

use std::time::Duration;

#[test]
fn nothing_is_lost_while_garbage_is_collected_and_everything_is_killed() {
    let figures = vdkr_tests::soak::soak(Duration::from_secs(20), 20_260_112);
    println!("{figures}");
}

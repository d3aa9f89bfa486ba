//! What there is to decide about containers: their names, when they start again, what a signal's
//! name means, which lines of a log are shown.

pub mod lines;
pub mod name;
pub mod process_stat;
pub mod restart;
pub mod signal;
pub mod time;

//! What there is to decide about containers: their names, when they start again, what a signal's
//! name means, which lines of a log are shown; and what they may do and use.

pub mod capability;
pub mod detach;
pub mod limits;
pub mod lines;
pub mod mounts;
pub mod name;
pub mod ports;
pub mod process_stat;
pub mod restart;
pub mod signal;

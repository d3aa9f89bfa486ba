//! What there is to decide about containers: their names, when they start again, what a signal's
//! name means.

pub mod name;
pub mod restart;
pub mod signal;

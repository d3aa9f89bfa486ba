//! The parts of tar archives (POSIX ustar and pax, GNU) that every reader of them shares.

pub mod header;
pub mod pax;
pub mod recipe;
pub mod rename;
pub mod write;

//! One file per command.

pub mod catalog;
pub mod config;
pub mod delete;
pub mod import;
pub mod list;
pub mod push;
pub mod serve;
pub mod start;
pub mod status;
pub mod stop;
pub mod tags;

//! One file per command.

pub mod auth;
pub mod catalog;
pub mod completions;
pub mod config;
pub mod delete;
pub mod doctor;
pub mod fsck;
pub mod gc;
pub mod history;
pub mod import;
pub mod info;
pub mod list;
pub mod login;
pub mod logout;
pub mod man;
pub mod pin;
pub mod prune;
pub mod push;
pub mod rollback;
pub mod serve;
pub mod start;
pub mod status;
pub mod stop;
pub mod tags;

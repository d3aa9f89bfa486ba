//! One file per command.

pub mod auth;
pub mod bake;
pub mod catalog;
pub mod completions;
pub mod config;
pub mod copy;
pub mod delete;
pub mod doctor;
pub mod import;
pub mod info;
pub mod inspect;
pub mod label;
pub mod list;
pub mod login;
pub mod logout;
pub mod man;
pub mod pki;
pub mod push;
pub mod serve;
pub mod start;
pub mod status;
pub mod stop;
pub mod tags;

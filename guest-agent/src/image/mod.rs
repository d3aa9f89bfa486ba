//! What is asked about images that are here: one file a question.

mod images;
mod inspect;
mod remove;
mod tag;

#[cfg(test)]
mod tests;

pub use images::images;
pub use inspect::inspect;
pub use remove::remove;
pub use tag::tag;

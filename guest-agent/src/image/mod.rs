//! What is asked about images that are here: one file a question.

mod add;
mod images;
mod inspect;
mod remove;
mod tag;

#[cfg(test)]
mod tests;

pub use add::{add_image, add_layer};
pub use images::images;
pub use inspect::inspect;
pub use remove::remove;
pub use tag::tag;

//! What is said, whatever the version it is said in: heads, bodies, faults.

pub(crate) mod body;
pub(crate) mod client;
pub(crate) mod decimal;
pub(crate) mod escape;
pub(crate) mod fault;
pub(crate) mod head;
pub(crate) mod page;
pub(crate) mod request_id;
pub(crate) mod template;

//! Roles: what the process in a slot is for.

#![forbid(unsafe_code)]

/// What a process is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Supervises.
    Master,
    /// Moves bytes.
    Worker,
    /// Administers: the admin interface, probes, name lookups.
    Control,
}

impl Role {
    const ALL: [Role; 3] = [Role::Master, Role::Worker, Role::Control];

    /// As it is shown.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Role::Master => "master",
            Role::Worker => "worker",
            Role::Control => "control",
        }
    }

    pub(super) fn word(self) -> u64 {
        match self {
            Role::Master => 1,
            Role::Worker => 2,
            Role::Control => 3,
        }
    }

    /// The role written as `word`; `None` for a role of a later version.
    #[must_use]
    pub fn from_word(word: u64) -> Option<Role> {
        Role::ALL.into_iter().find(|role| role.word() == word)
    }
}

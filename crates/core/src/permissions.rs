//! Who may do what. Every verb of the server asks [`allow`], once, with what it is about to do.

use serde::{Deserialize, Serialize};

use crate::ids::AccountId;

/// What an account may do at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Everything, for everyone.
    Admin,
    /// Their own sessions, and the use of registered agents.
    Member,
}

impl Role {
    /// As written outside and in the store.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Admin => "admin",
            Role::Member => "member",
        }
    }
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor {
    /// Their account.
    pub account: AccountId,
    /// Its name, for the log.
    pub name: String,
    /// What it may do.
    pub role: Role,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Create a session of one's own.
    CreateSession,
    /// See a session, its conversation, log or files.
    ReadSession {
        /// Whose session.
        owner: AccountId,
    },
    /// Change or use a session: messages, its life, files, exec.
    UseSession {
        /// Whose session.
        owner: AccountId,
    },
    /// See or use an image.
    ReadImage {
        /// Whose image.
        owner: AccountId,
        /// Whether it is there for everyone.
        is_shared: bool,
    },
    /// Bring images in, as one's own.
    CreateImage,
    /// Remove an image.
    ManageImage {
        /// Whose image.
        owner: AccountId,
        /// Whether it is there for everyone.
        is_shared: bool,
    },
    /// See agents.
    ReadAgents,
    /// Register, change or remove agents.
    ManageAgents,
    /// See which models there are.
    ReadModels,
    /// See, add, change or remove providers of models.
    ManageProviders,
    /// See, add, change or remove a secret, whose value nobody sees.
    ManageSecret {
        /// Whose secret.
        owner: AccountId,
    },
    /// See or change accounts and other people's tokens.
    ManageAccounts,
    /// See, make or revoke tokens of one account.
    ManageTokens {
        /// Whose tokens.
        owner: AccountId,
    },
    /// See what the whole server does.
    ReadServer,
    /// Give space back, at the cost of what others no longer seem to need.
    ManageServer,
    /// Be at registries whom the server's file of credentials says.
    UseRegistryCredentials {
        /// Whether the server was told that they are for everyone.
        is_shared: bool,
    },
    /// Have the server speak to registries on its own machine and in private networks, whichever they are.
    ReachPrivateRegistries,
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Go on.
    Allow,
    /// The caller may know that it is there, but not do this.
    Forbid,
    /// The caller may not know that it is there.
    Hide,
}

/// Decides whether `actor` may do `action`.
pub fn allow(actor: &Actor, action: Action) -> Decision {
    if actor.role == Role::Admin {
        return Decision::Allow;
    }
    match action {
        Action::CreateSession | Action::CreateImage | Action::ReadAgents | Action::ReadModels => Decision::Allow,
        Action::ReadImage { owner, is_shared } => {
            if is_shared || owner == actor.account {
                Decision::Allow
            } else {
                Decision::Hide
            }
        }
        Action::ManageImage { owner, .. } if owner == actor.account => Decision::Allow,
        Action::ManageImage { is_shared, .. } => {
            if is_shared {
                Decision::Forbid
            } else {
                Decision::Hide
            }
        }
        Action::ReadSession { owner }
        | Action::UseSession { owner }
        | Action::ManageTokens { owner }
        | Action::ManageSecret { owner } => {
            if owner == actor.account {
                Decision::Allow
            } else {
                Decision::Hide
            }
        }
        Action::UseRegistryCredentials { is_shared: true } => Decision::Allow,
        Action::ManageAgents
        | Action::ManageProviders
        | Action::ManageAccounts
        | Action::ReadServer
        | Action::ManageServer
        | Action::UseRegistryCredentials { .. }
        | Action::ReachPrivateRegistries => Decision::Forbid,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn a_member_has_their_own_and_an_admin_everything() {
        let (me, other) = (AccountId(Uuid::from_u128(1)), AccountId(Uuid::from_u128(2)));
        let member = Actor { account: me, name: "me".into(), role: Role::Member };
        let admin = Actor { role: Role::Admin, ..member.clone() };
        let table = [
            (Action::CreateSession, Decision::Allow),
            (Action::ReadSession { owner: me }, Decision::Allow),
            (Action::ReadSession { owner: other }, Decision::Hide),
            (Action::UseSession { owner: me }, Decision::Allow),
            (Action::UseSession { owner: other }, Decision::Hide),
            (Action::CreateImage, Decision::Allow),
            (Action::ReadImage { owner: me, is_shared: false }, Decision::Allow),
            (Action::ReadImage { owner: other, is_shared: false }, Decision::Hide),
            (Action::ReadImage { owner: other, is_shared: true }, Decision::Allow),
            (Action::ManageImage { owner: me, is_shared: false }, Decision::Allow),
            (Action::ManageImage { owner: other, is_shared: false }, Decision::Hide),
            (Action::ManageImage { owner: other, is_shared: true }, Decision::Forbid),
            (Action::ReadAgents, Decision::Allow),
            (Action::ManageAgents, Decision::Forbid),
            (Action::ReadModels, Decision::Allow),
            (Action::ManageProviders, Decision::Forbid),
            (Action::ManageSecret { owner: me }, Decision::Allow),
            (Action::ManageSecret { owner: other }, Decision::Hide),
            (Action::ManageAccounts, Decision::Forbid),
            (Action::ManageTokens { owner: me }, Decision::Allow),
            (Action::ManageTokens { owner: other }, Decision::Hide),
            (Action::ReadServer, Decision::Forbid),
            (Action::ManageServer, Decision::Forbid),
            (Action::UseRegistryCredentials { is_shared: true }, Decision::Allow),
            (Action::UseRegistryCredentials { is_shared: false }, Decision::Forbid),
            (Action::ReachPrivateRegistries, Decision::Forbid),
        ];
        for (action, expected) in table {
            assert_eq!(allow(&member, action), expected, "{action:?}");
            assert_eq!(allow(&admin, action), Decision::Allow, "{action:?}");
        }
    }
}

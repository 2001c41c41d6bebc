//! How registries are spoken to, and as whom.

use std::path::PathBuf;

use raworc_api::image::RegistryCredentials;
use raworc_api::problem::Code;
use raworc_core::limits::IMAGE_BYTES_MAX;
use raworc_core::permissions::{Action, Actor, Decision, allow};
use raworc_oci::{AddressPolicy, Options, Reference, Registry};
use raworc_workspace::FileError;

use crate::error::Failure;
use crate::sync::blocking;
use crate::transfers::credentials::Credentials;

/// How registries are spoken to.
#[derive(Clone, Debug, Default)]
pub struct Registries {
    /// A file of credentials, as `docker login` and `skopeo login` write them.
    pub auth_file: Option<PathBuf>,
    /// Whether every account uses them, and not administrators and backups only.
    pub auth_is_shared: bool,
    /// Hosts, with their ports, that are spoken to without TLS. This machine is in any case, unless there are certificates.
    pub plain_http: Vec<String>,
    /// A file of certificates (PEM) to trust besides the machine's own.
    pub certificates: Option<PathBuf>,
    /// Hosts, or hosts with a port, on this machine and in private networks that members may have the server speak to.
    pub allowed: Vec<String>,
}

/// Whom to be at a registry.
pub enum Login {
    /// Who the caller says.
    Given(RegistryCredentials),
    /// Who the server's file says.
    Servers,
    /// Nobody.
    Anonymous,
}

impl Registries {
    /// Looks whether the files that were named can be read: what is wrong with them is said at the start, and not by the first
    /// push.
    ///
    /// # Errors
    /// Which cannot, and why.
    pub fn check(&self) -> Result<(), String> {
        let auth = self.auth_file.as_deref().map(Credentials::read).transpose();
        auth.map_err(|why| format!("the credentials for registries cannot be used: {why}"))?;
        self.certificates().map_err(|why| format!("the certificates of registries cannot be used: {why}"))?;
        Ok(())
    }

    fn certificates(&self) -> Result<Option<Vec<u8>>, String> {
        let Some(file) = &self.certificates else { return Ok(None) };
        let read = std::fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
        Ok(Some(read))
    }

    /// As whom an account speaks to registries: as it says itself, or else as the server may for it.
    pub fn login(&self, actor: &Actor, given: Option<RegistryCredentials>) -> Login {
        let action = Action::UseRegistryCredentials { is_shared: self.auth_is_shared };
        match given {
            Some(given) => Login::Given(given),
            None if allow(actor, action) == Decision::Allow => Login::Servers,
            None => Login::Anonymous,
        }
    }

    /// Where the server goes for an account. It stands where much trusts it that would not trust every member.
    pub fn address_policy(&self, actor: &Actor) -> AddressPolicy {
        match allow(actor, Action::ReachPrivateRegistries) {
            Decision::Allow => AddressPolicy::Anywhere,
            Decision::Forbid | Decision::Hide => AddressPolicy::Public(self.allowed.clone()),
        }
    }

    /// A registry.
    ///
    /// # Errors
    /// Where a file that the server was told of cannot be read.
    pub async fn registry(
        &self,
        reference: &Reference,
        login: Login,
        address_policy: AddressPolicy,
    ) -> Result<Registry, Failure> {
        let (registries, reference) = (self.clone(), reference.clone());
        let prepare = move || -> Result<Registry, Failure> {
            let credentials = match (login, &registries.auth_file) {
                (Login::Given(given), _) => Some((given.username, given.password)),
                (Login::Servers, Some(file)) => {
                    Credentials::read(file).map_err(unusable)?.of(reference.host(), reference.repository())
                }
                (Login::Servers, None) | (Login::Anonymous, _) => None,
            };
            let certificates = registries.certificates().map_err(unusable)?;
            // This machine is spoken to plainly, unless it is said whom to trust.
            let plain_http = match registries.plain_http.iter().any(|host| host == reference.host()) {
                true => Some(true),
                false => certificates.as_ref().map(|_| false),
            };
            let options =
                Options { plain_http, certificates, address_policy, bytes_max: IMAGE_BYTES_MAX, ..Options::default() };
            Ok(Registry::new(reference, credentials, options)?)
        };
        blocking(prepare).await.map_err(FileError::Io)?
    }
}

/// What the log has to say is not for those who ask.
fn unusable(why: String) -> Failure {
    tracing::error!(%why, "a file for registries cannot be used");
    Failure::new(Code::Internal, "a file of the server's for registries cannot be used; its log says why")
}

//! Why a consent did not end in a connection: a stable code for the page, a sentence for the teacher, and what to do.

use axum::http::StatusCode;

use crate::google::error::{Class, GoogleError};
use crate::google::oauth::{TIMED_OUT, VERIFIER_REFUSED};

/// `code=` of the return page. Codes never change their meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FailureCode {
    /// The callback has neither a code nor an error, or no state, or names another issuer.
    CallbackInvalid,
    /// The state is nobody's, or long over.
    StateUnknown,
    /// The state was used before: a second callback.
    StateUsed,
    /// The state is older than ten minutes.
    StateExpired,
    /// The consent was begun in another browser.
    OtherBrowser,
    /// The person pressed Cancel, or is no test user of an app in testing.
    AccessDenied,
    /// The calendar box was left unticked.
    ScopeMissing,
    /// Google gave no refresh token, and none of this account is kept.
    NoRefreshToken,
    /// Another Google account than before, and no change was asked for.
    AccountMismatch,
    /// The id token breaks a rule.
    IdTokenInvalid,
    /// Google refused the code: too old, used, or another client's.
    CodeRefused,
    /// Google refused the PKCE verifier.
    PkceMismatch,
    /// The Workspace administrator blocks the app.
    AdminBlocked,
    /// The app is for another organisation only.
    OrgInternal,
    /// Our OAuth client is not set up right.
    ConfigError,
    /// Google answered 429.
    GoogleBusy,
    /// Google failed.
    GoogleUnavailable,
    /// Google did not answer in time.
    GoogleTimeout,
    /// The database was away.
    DatabaseUnavailable,
    /// The account is being disconnected at this moment.
    Disconnecting,
}

/// A code is good for one exchange, so nothing can be tried again by reloading.
const AGAIN: &str = "Please go back to the school's site and connect again.";

impl FailureCode {
    /// All codes, with the word for programs, the sentence for the teacher, and the next step.
    pub const ALL: [(Self, &'static str, &'static str, &'static str); 20] = [
        (
            Self::CallbackInvalid,
            "CALLBACK_INVALID",
            "This address is opened by Google after you agree; it does not work by itself.",
            AGAIN,
        ),
        (
            Self::StateUnknown,
            "STATE_UNKNOWN",
            "This attempt to connect is not known here, or was over long ago.",
            AGAIN,
        ),
        (
            Self::StateUsed,
            "STATE_USED",
            "This answer of Google's was used already.",
            "If you have just connected, you are done and can close this page. If not, please go back to the school's site and connect again.",
        ),
        (Self::StateExpired, "STATE_EXPIRED", "More than ten minutes passed since you began to connect.", AGAIN),
        (
            Self::OtherBrowser,
            "OTHER_BROWSER",
            "You began to connect in another browser, or your browser blocks cookies of this site.",
            "Please begin and finish in the same browser window, and go on only if it was you who began.",
        ),
        (
            Self::AccessDenied,
            "ACCESS_DENIED",
            "Access to your Google Calendar was not allowed.",
            "If that was a mistake, please go back to the school's site, connect again and choose Continue. If Google said that the app is being tested, ask your school to add your address.",
        ),
        (
            Self::ScopeMissing,
            "SCOPE_MISSING",
            "The box for Google Calendar was not ticked, so no lessons can be entered.",
            "Please connect again and tick the box that allows to see and edit your calendar events.",
        ),
        (
            Self::NoRefreshToken,
            "NO_REFRESH_TOKEN",
            "Google did not give lasting access.",
            "Please remove the school's app at https://myaccount.google.com/connections and connect again.",
        ),
        (
            Self::AccountMismatch,
            "ACCOUNT_MISMATCH",
            "This is another Google account than the one that is connected.",
            "Please connect again with the account from before, or choose \"use another account\" on the school's site.",
        ),
        (
            Self::IdTokenInvalid,
            "ID_TOKEN_INVALID",
            "Google's answer does not say reliably whose account it is.",
            "Please connect again. If it happens again, tell your school.",
        ),
        (
            Self::CodeRefused,
            "CODE_REFUSED",
            "Google no longer accepts this answer: it is too old, or was used already.",
            AGAIN,
        ),
        (Self::PkceMismatch, "PKCE_MISMATCH", "This answer of Google's belongs to another attempt to connect.", AGAIN),
        (
            Self::AdminBlocked,
            "ADMIN_BLOCKED",
            "The administrator of your Google Workspace does not allow this app.",
            "Please ask that administrator to allow it, or connect another account.",
        ),
        (
            Self::OrgInternal,
            "ORG_INTERNAL",
            "This app is only for accounts of the organisation it belongs to.",
            "Please connect with your account at that organisation, or tell your school.",
        ),
        (
            Self::ConfigError,
            "CONFIG_ERROR",
            "The school's access to Google is not set up right. It is not your fault.",
            "The school has been told. Please try again later.",
        ),
        (
            Self::GoogleBusy,
            "GOOGLE_BUSY",
            "Google is being asked too often at the moment.",
            "Please wait a minute, then go back to the school's site and connect again.",
        ),
        (
            Self::GoogleUnavailable,
            "GOOGLE_UNAVAILABLE",
            "Google had a fault.",
            "Please wait a minute, then go back to the school's site and connect again.",
        ),
        (
            Self::GoogleTimeout,
            "GOOGLE_TIMEOUT",
            "Google did not answer in time.",
            "Please wait a minute, then go back to the school's site and connect again.",
        ),
        (
            Self::DatabaseUnavailable,
            "DATABASE_UNAVAILABLE",
            "The school's database could not be reached.",
            "Please wait a minute, then go back to the school's site and connect again.",
        ),
        (
            Self::Disconnecting,
            "DISCONNECTING",
            "This Google account is being disconnected at this moment.",
            "Please wait a minute, then go back to the school's site and connect again.",
        ),
    ];

    fn entry(self) -> &'static (Self, &'static str, &'static str, &'static str) {
        Self::ALL.iter().find(|(code, ..)| *code == self).expect("ALL has every code")
    }

    /// The word.
    pub fn as_str(self) -> &'static str {
        self.entry().1
    }

    /// What happened, for the teacher.
    pub fn sentence(self) -> &'static str {
        self.entry().2
    }

    /// What to do now, for the teacher.
    pub fn advice(self) -> &'static str {
        self.entry().3
    }

    /// The status of a page that shows it.
    pub fn status(self) -> StatusCode {
        match self {
            Self::GoogleBusy
            | Self::GoogleUnavailable
            | Self::GoogleTimeout
            | Self::ConfigError
            | Self::DatabaseUnavailable
            | Self::Disconnecting => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}

/// A consent that did not end in a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The code.
    pub code: FailureCode,
    /// Shortened addresses of the account that was expected and of the one that was chosen.
    pub accounts: Option<(String, String)>,
    /// For the log alone.
    pub cause: Option<String>,
}

impl From<FailureCode> for Failure {
    fn from(code: FailureCode) -> Self {
        Self { code, accounts: None, cause: None }
    }
}

impl Failure {
    /// With a cause for the log.
    pub fn because(code: FailureCode, cause: impl Into<String>) -> Self {
        Self { cause: Some(cause.into()), ..code.into() }
    }

    /// `error` of the callback (RFC 6749 section 4.1.2.1, and what Google adds).
    pub fn of_consent(error: &str) -> Self {
        let code = match error {
            "access_denied" => FailureCode::AccessDenied,
            "admin_policy_enforced" => FailureCode::AdminBlocked,
            "org_internal" => FailureCode::OrgInternal,
            "temporarily_unavailable" | "server_error" => FailureCode::GoogleUnavailable,
            _ => FailureCode::ConfigError,
        };
        // The word comes with the address, from anybody.
        let word: String = error.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '_').take(64).collect();
        Self::because(code, format!("the consent page answered {word}"))
    }

    /// A failed exchange of the code.
    pub fn of_exchange(error: &GoogleError) -> Self {
        let reason = error.reason.as_deref();
        let code = match error.class {
            Class::ReconnectRequired if reason == Some(VERIFIER_REFUSED) => FailureCode::PkceMismatch,
            Class::ReconnectRequired => FailureCode::CodeRefused,
            Class::ScopeMissing => FailureCode::ScopeMissing,
            Class::AdminBlocked => FailureCode::AdminBlocked,
            Class::Misconfigured if reason == Some("org_internal") => FailureCode::OrgInternal,
            Class::Transient if reason == Some(TIMED_OUT) => FailureCode::GoogleTimeout,
            Class::Transient | Class::RateLimited if error.status == Some(429) => FailureCode::GoogleBusy,
            Class::Transient | Class::RateLimited => FailureCode::GoogleUnavailable,
            _ => FailureCode::ConfigError,
        };
        Self::because(code, error.message.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_code_has_its_own_word_and_sentence() {
        let words: HashSet<_> = FailureCode::ALL.iter().map(|(_, word, ..)| word).collect();
        let sentences: HashSet<_> = FailureCode::ALL.iter().map(|(_, _, sentence, _)| sentence).collect();
        assert_eq!((words.len(), sentences.len()), (FailureCode::ALL.len(), FailureCode::ALL.len()));
        for (code, word, sentence, advice) in FailureCode::ALL {
            assert_eq!((code.as_str(), code.sentence(), code.advice()), (word, sentence, advice));
            assert!(sentence.ends_with('.') && advice.ends_with('.'), "{word}");
        }
    }

    #[test]
    fn a_word_from_the_address_is_cleaned_before_it_is_logged() {
        let failure = Failure::of_consent("x\r\nforged: line <script>");
        assert_eq!(failure.code, FailureCode::ConfigError);
        assert_eq!(failure.cause.as_deref(), Some("the consent page answered xforgedlinescript"));
    }
}

//! Who asks, and what they may do: the three questions that handlers put.

use std::sync::Arc;

use crate::api::limits::Bucket;
use crate::api::problem::Problem;
use crate::model::TeacherId;
use crate::store::Role;

/// Somebody whose token was accepted.
#[derive(Debug, PartialEq, Eq)]
pub struct Principal {
    role: Option<Role>,
    teacher: Option<TeacherId>,
    name: Box<str>,
}

impl Principal {
    /// Somebody with a role for all teachers, with a teacher of their own, or both. Whoever has neither may do nothing.
    pub fn new(role: Option<Role>, teacher: Option<TeacherId>, name: impl Into<Box<str>>) -> Self {
        Self { role, teacher, name: name.into() }
    }

    /// Who did it, for the audit: `token:<id>` or `jwt:<sub>`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// 403 unless the role is enough. A teacher has no role, only a teacher of their own.
    pub fn require(&self, role: Role) -> Result<(), Problem> {
        match self.role {
            Some(has) if has >= role => Ok(()),
            Some(has) => Err(Problem::role_too_low(role.as_str(), has.as_str())),
            None if self.teacher.is_some() => Err(Problem::role_too_low(role.as_str(), "teacher")),
            None => Err(Problem::no_role()),
        }
    }

    /// 403 unless they may act for this teacher (connect and disconnect the Google account): that teacher, or an admin.
    pub fn require_teacher(&self, teacher: &TeacherId) -> Result<(), Problem> {
        if self.teacher.as_ref() == Some(teacher) || self.role == Some(Role::Admin) {
            return Ok(());
        }
        match (self.role, &self.teacher) {
            (Some(has), _) => Err(Problem::role_too_low(Role::Admin.as_str(), has.as_str())),
            (None, Some(_)) => Err(Problem::another_teacher()),
            (None, None) => Err(Problem::no_role()),
        }
    }

    /// 403 unless they may see what concerns this teacher: a reader, or that teacher.
    pub fn require_reader_of(&self, teacher: &TeacherId) -> Result<(), Problem> {
        match self.restricted_to()? {
            Some(own) if own != teacher => Err(Problem::another_teacher()),
            _ => Ok(()),
        }
    }

    /// Whose sessions they may see: `None` for everybody's, else one teacher's. 403 for nobody's.
    pub fn restricted_to(&self) -> Result<Option<&TeacherId>, Problem> {
        match (self.role, &self.teacher) {
            (Some(_), _) => Ok(None),
            (None, Some(own)) => Ok(Some(own)),
            (None, None) => Err(Problem::no_role()),
        }
    }
}

/// A principal, and the bucket that their requests are taken from.
#[derive(Debug)]
pub(in crate::api) struct Caller {
    pub(in crate::api) principal: Arc<Principal>,
    pub(in crate::api) bucket: Option<Arc<Bucket>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who may do what, as letters: R reader, O operator, A admin; a, b act for teacher a or b; x, y see what concerns
    /// them.
    #[test]
    fn who_may_do_what() {
        let [a, b] = ["a", "b"].map(|id| TeacherId::parse(id).unwrap());
        let table = [
            (None, None, ""),
            (None, Some(&a), "ax"),
            (Some(Role::Reader), None, "Rxy"),
            (Some(Role::Reader), Some(&a), "Raxy"),
            (Some(Role::Operator), None, "ROxy"),
            (Some(Role::Operator), Some(&b), "RObxy"),
            (Some(Role::Admin), None, "ROAabxy"),
            (Some(Role::Admin), Some(&a), "ROAabxy"),
        ];
        for (role, teacher, expected) in table {
            let principal = Principal::new(role, teacher.cloned(), "somebody");
            let answers = [
                ('R', principal.require(Role::Reader)),
                ('O', principal.require(Role::Operator)),
                ('A', principal.require(Role::Admin)),
                ('a', principal.require_teacher(&a)),
                ('b', principal.require_teacher(&b)),
                ('x', principal.require_reader_of(&a)),
                ('y', principal.require_reader_of(&b)),
            ];
            for (_, refused) in answers.iter().filter_map(|(letter, answer)| Some((letter, answer.as_ref().err()?))) {
                assert_eq!(refused.status.as_u16(), 403);
            }
            let may: String = answers.iter().filter(|(_, answer)| answer.is_ok()).map(|(letter, _)| letter).collect();
            assert_eq!(may, expected, "{role:?} {teacher:?}");
        }
    }
}

//! The problems that calls answer with, for the OpenAPI document.

use std::collections::BTreeMap;

use raworc_api::problem::Problem;
use utoipa::openapi::{ContentBuilder, RefOr, ResponseBuilder, response::Response};
use utoipa::{IntoResponses, ToSchema};

/// Every call may answer with these.
pub struct Problems;

const STATUSES: [(&str, &str); 14] = [
    ("400", "The body is not JSON, or the query or path is wrong"),
    ("401", "No token, or a bad one"),
    ("403", "Not allowed"),
    ("404", "Not there, or not to be seen by the caller"),
    ("405", "The path does not take this method"),
    ("406", "The Accept header allows none of what there is"),
    ("409", "The state forbids it"),
    ("412", "Not what the conditions say"),
    ("413", "Too many bytes"),
    ("415", "The body is not of the media type, or is encoded"),
    ("422", "A field is wrong"),
    ("429", "Too much at once"),
    ("500", "A fault of the server"),
    ("503", "A part the server needs is away"),
];

impl IntoResponses for Problems {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        let reference = utoipa::openapi::Ref::from_schema_name(Problem::name());
        STATUSES
            .iter()
            .map(|(status, description)| {
                let content = ContentBuilder::new().schema(Some(reference.clone())).build();
                let response =
                    ResponseBuilder::new().description(*description).content("application/problem+json", content);
                ((*status).to_owned(), RefOr::T(response.build()))
            })
            .collect()
    }
}

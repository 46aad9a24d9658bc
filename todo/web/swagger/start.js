// Swagger UI on the service's own document. A token that is entered is forgotten with the page, and the document is
// shown to no validator on another host.
SwaggerUIBundle({
  url: document.currentScript.dataset.document,
  dom_id: "#swagger-ui",
  persistAuthorization: false,
  validatorUrl: null,
});

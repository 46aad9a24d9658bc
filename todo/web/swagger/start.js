// Swagger UI with the service's own document. It forgets the token when the page closes, and sends the document to no
// validator on another host.
SwaggerUIBundle({
  url: document.currentScript.dataset.document,
  dom_id: "#swagger-ui",
  persistAuthorization: false,
  validatorUrl: null,
});

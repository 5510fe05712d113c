SwaggerUIBundle({ url: "/v1/openapi.json", dom_id: "#viewer", deepLinking: true, validatorUrl: null });

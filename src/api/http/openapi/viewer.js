// The viewer, and the one thing that an example cannot know: the fence of a claim. It is that of the claim that was taken
// last on this page, and is put in where the example still stands.
const EXAMPLE_FENCE = 1;
let fence;

function rememberFence(response) {
  fence = response.obj?.claim?.fence ?? fence;
  return response;
}

function putFence(request) {
  if (fence === undefined || typeof request.body !== "string") return request;
  try {
    const body = JSON.parse(request.body);
    if (body.fence === EXAMPLE_FENCE) request.body = JSON.stringify({ ...body, fence }, null, 2);
  } catch {
    // What is not JSON is the service's to refuse.
  }
  return request;
}

SwaggerUIBundle({
  url: "/v1/openapi.json",
  dom_id: "#viewer",
  deepLinking: true,
  validatorUrl: null,
  requestInterceptor: putFence,
  responseInterceptor: rememberFence,
});

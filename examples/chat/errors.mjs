/** The world's fault, which a user is told in one line; everything else is a bug and shows its stack. */
export class ChatError extends Error {
  name = 'ChatError';
}

/** A request that is refused, as OpenAI's interface says it. */
export class ApiError extends Error {
  name = 'ApiError';

  constructor(status, message, { type = 'invalid_request_error', param = null, code = null } = {}) {
    super(message);
    this.status = status;
    this.body = { error: { message, type, param, code } };
  }

  static badParam(param, what) {
    return new ApiError(400, `'${param}': ${what}`, { param });
  }

  static unavailable(message) {
    return new ApiError(503, message, { type: 'server_error', code: 'unavailable' });
  }
}
